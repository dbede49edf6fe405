use super::*;

fn event(namespace: &str, pod: &str) -> v1::Event {
    v1::Event {
        workload: Some(v1::WorkloadName {
            namespace: namespace.into(),
            pod: pod.into(),
            state: if pod.is_empty() {
                v1::IdentityState::Host.into()
            } else {
                v1::IdentityState::Pod.into()
            },
            ..v1::WorkloadName::default()
        }),
        detail: Some(v1::event::Detail::Exec(v1::Exec::default())),
        ..v1::Event::default()
    }
}

fn store(top: usize, grace: Duration) -> (Store, Index) {
    let index = Index::new("n");
    (Store::new(SeriesSink { top, grace }, index.clone()), index)
}

fn times(store: &Store, pod: &str, times: usize) {
    let namespace = if pod.is_empty() { "" } else { "shop" };
    store.take(&vec![event(namespace, pod); times]);
}

fn execs(store: &Store) -> Vec<(String, u64)> {
    let families = store.families();
    let of = families
        .iter()
        .find(|(definition, _)| definition.name == "execs");
    let series = of.map_or(&[][..], |(_, series)| &series[..]);
    series
        .iter()
        .map(|series| (series.pod.clone(), series.point.sum))
        .collect()
}

fn told(expected: &[(&str, u64)]) -> Vec<(String, u64)> {
    expected
        .iter()
        .map(|(pod, count)| ((*pod).to_owned(), *count))
        .collect()
}

#[test]
fn those_that_do_most_have_series_and_nothing_is_counted_twice_or_falls() {
    let (store, _) = store(2, Duration::from_secs(3600));
    for (pod, count) in [("a", 5), ("b", 1), ("c", 30), ("", 7)] {
        times(&store, pod, count);
    }
    assert_eq!(
        execs(&store),
        told(&[("(host)", 7), (REST, 30), ("a", 5), ("b", 1)])
    );
    // c does more than b: from now on it is told by itself.
    store.sweep(Instant::now());
    times(&store, "c", 4);
    times(&store, "b", 2);
    assert_eq!(
        execs(&store),
        told(&[("(host)", 7), (REST, 32), ("a", 5), ("c", 4)])
    );
    // Who does only a little more takes nobody's place.
    times(&store, "b", 3);
    store.sweep(Instant::now());
    assert_eq!(
        execs(&store),
        told(&[("(host)", 7), (REST, 35), ("a", 5), ("c", 4)])
    );
}

#[test]
fn a_pod_that_is_gone_is_told_of_for_a_while() {
    let grace = Duration::from_secs(60);
    let (store, _) = store(2, grace);
    times(&store, "a", 1);
    times(&store, "", 1);
    let start = Instant::now();
    store.sweep(start);
    store.sweep(start + grace / 2);
    assert_eq!(execs(&store), told(&[("(host)", 1), ("a", 1)]));
    store.sweep(start + grace);
    assert_eq!(execs(&store), told(&[("(host)", 1)]));
    assert!(store.inner().gone.len() <= 1);
    store.sweep(start + 2 * grace);
    assert!(store.inner().gone.is_empty());
}

#[test]
fn there_are_never_more_than_are_allowed() {
    let (store, _) = store(10, Duration::ZERO);
    for number in 0..20_000 {
        times(&store, &format!("pod-{number}"), 1);
    }
    assert_eq!(execs(&store).len(), 11);
    let candidates = store.inner().families[Of::Execs as usize].candidates.len();
    assert_eq!(candidates, CANDIDATES_MAX);
    let sum: u64 = execs(&store).iter().map(|(_, count)| count).sum();
    assert_eq!(sum, 20_000);
}

#[test]
fn values_that_nobody_knows_beforehand_are_bounded_too() {
    let (store, _) = store(1, Duration::ZERO);
    for number in 0..1000 {
        let drop = v1::DropCount {
            reason: format!("REASON_{number}"),
            count: 2,
            ..v1::DropCount::default()
        };
        store.take(&[v1::Event {
            detail: Some(v1::event::Detail::DropCount(drop)),
            ..event("shop", "web")
        }]);
    }
    let families = store.families();
    let series = &families[0].1;
    assert_eq!(series.len(), POINTS_MAX + 1);
    assert_eq!(
        series.iter().map(|series| series.point.sum).sum::<u64>(),
        2000
    );
    assert!(series.iter().any(|series| series.values == [REST]));
}

#[test]
fn who_gets_series_anew_begins_anew() {
    let (store, _) = store(1, Duration::from_secs(3600));
    let since = |pod: &str| {
        let families = store.families();
        let mut series = families.iter().flat_map(|(_, series)| series);
        series
            .find(|series| series.pod == pod)
            .map(|series| series.since)
    };
    times(&store, "a", 1);
    let first = since("a").expect("a");
    times(&store, "b", 10);
    store.sweep(Instant::now());
    times(&store, "b", 1);
    assert_eq!(since("a"), None);
    assert!(since("b").expect("b") > first && since(REST).expect("the rest") < first);
    times(&store, "a", 100);
    store.sweep(Instant::now());
    times(&store, "a", 1);
    assert!(since("a").expect("a") > first);
}
