use std::{cell::RefCell, future::pending, io, rc::Rc};

use dinle_proto::v1::subscribe_response::Message;
use tokio::time::sleep;

use super::*;
use crate::{
    client::{
        columns::Who,
        json::Json,
        nodes::tests::Paper,
        stream::{News, Printer},
    },
    cluster::Known,
};

/// Knows these nodes, of which the first ones mattered at the start.
fn listener(first: &[&str], later: &[&str]) -> anyhow::Result<Listener> {
    let names = |names: &[&str]| -> Vec<String> { names.iter().map(|&n| n.to_owned()).collect() };
    let node = |came| Node {
        came,
        ..Node::default()
    };
    let nodes = names(first).into_iter().map(|name| (name, node(None)));
    let now = Some(Instant::now());
    let later = names(later).into_iter().map(|name| (name, node(now)));
    Ok(Listener {
        view: View::of_nodes(Format::Json(Json::of("Event")?), None),
        ends: None,
        first: names(first).into_iter().collect(),
        nodes: nodes.chain(later).collect(),
        faults: Vec::new(),
        enough: None,
    })
}

fn told(node: &str, said: Said) -> Told {
    Told {
        node: node.to_owned(),
        at: Moment::now(),
        said,
    }
}

fn broke(why: &str) -> Said {
    Said::Broke {
        why: why.to_owned(),
        for_good: false,
    }
}

#[test]
fn without_hope_are_only_those_who_mattered_at_the_start() -> anyhow::Result<()> {
    type Names = &'static [&'static str];
    type Story = Vec<(&'static str, Said)>;
    type Row = (Names, Names, Story, bool);
    let lacking = || Said::Lacking("its agent is not ready".to_owned());
    let table: [Row; 6] = [
        (&["n1"], &[], vec![("n1", lacking())], true),
        (&["n1", "n2"], &[], vec![("n1", lacking())], false),
        (
            &["n1", "n2"],
            &[],
            vec![("n1", lacking()), ("n2", lacking())],
            true,
        ),
        // No pod matched at the start: what comes later is waited for.
        (&[], &["n1"], vec![("n1", lacking())], false),
        // Its agent is replaced, or another node's is heard.
        (
            &["n1"],
            &[],
            vec![
                ("n1", Said::Began),
                ("n1", broke("gone")),
                ("n1", lacking()),
            ],
            false,
        ),
        (
            &["n1"],
            &["n2"],
            vec![("n2", Said::Began), ("n1", lacking())],
            false,
        ),
    ];
    for (number, (first, later, story, hopeless)) in table.into_iter().enumerate() {
        let mut paper = Paper::default();
        let mut listener = listener(first, later)?;
        for (name, said) in story {
            listener.take(told(name, said), &mut paper.screen())?;
        }
        assert_eq!(listener.hopeless(), hopeless, "row {number}");
    }
    Ok(())
}

/// Events that happened at these seconds, from number 1 on.
fn batch(seconds: &[i64]) -> Said {
    let event = |seconds: &i64| v1::Event {
        time: Some(prost_types::Timestamp {
            seconds: *seconds,
            nanos: 0,
        }),
        ..v1::Event::default()
    };
    let batch = v1::EventBatch {
        first_sequence: 1,
        events: seconds.iter().map(event).collect(),
    };
    let message = Some(Message::Batch(batch));
    Said::Message(Box::new(v1::SubscribeResponse { message }))
}

#[tokio::test(start_paused = true)]
async fn what_came_while_a_write_was_stuck_is_in_order_too() -> anyhow::Result<()> {
    let mut listener = listener(&["n1", "n2"], &[])?;
    let mut paper = Paper::default();
    let (sender, mut inbox) = mpsc::channel(INBOX);
    for node in ["n1", "n2"] {
        listener.hear(told(node, Said::Began), &mut paper.screen())?;
    }
    listener.hear(told("n1", batch(&[2, 4])), &mut paper.screen())?;
    // It cannot be taken, since the output is not.
    sender.try_send(told("n2", batch(&[1, 3])))?;
    tokio::time::advance(crate::client::order::HELD).await;
    assert!(!listener.release(&mut inbox, &mut paper.screen())?);
    let second = |second: u8| format!(r#"{{"time":"1970-01-01T00:00:0{second}Z"}}"#);
    let expected = [1, 2, 3, 4].map(second).join("\n") + "\n";
    assert_eq!(paper.out(), expected);
    Ok(())
}

/// These nodes matter, and no others will.
fn wanted(names: &[&str]) -> Wanted {
    let known = Known {
        synced: true,
        fault: None,
        value: names.iter().map(|&name| name.to_owned()).collect(),
    };
    Wanted {
        agents: watch::channel(Known::default()).1,
        nodes: Some(watch::channel(known).1),
    }
}

#[tokio::test(start_paused = true)]
async fn each_node_has_its_time_from_its_own_beginning() -> anyhow::Result<()> {
    const DURATION: Duration = Duration::from_secs(5);
    const DIALS: Duration = Duration::from_secs(4);
    let began = Instant::now();
    let names = ["at-once", "late", "never"];
    let mut listener = Listener {
        ends: Some(began + DURATION),
        nodes: BTreeMap::new(),
        ..listener(&names, &[])?
    };
    let (leave, left) = watch::channel(false);
    let attend = |node: String, first: bool, sender: mpsc::Sender<Told>| {
        let mut left = left.clone();
        async move {
            assert!(first, "{node} mattered from the start");
            let out = Outbox { node, sender };
            match out.node.as_str() {
                "at-once" => {}
                "late" => sleep(DIALS).await,
                _ => {
                    _ = left.wait_for(|left| *left).await;
                    return;
                }
            }
            out.say(Said::Began).await;
            sleep(DURATION).await;
            out.say(batch(&[1])).await;
            out.say(Said::Over).await;
        }
    };
    let mut paper = Paper::default();
    let (pokes, stop) = (tokio_stream::pending(), pending());
    listener
        .run(
            &mut wanted(&names),
            attend,
            leave,
            &mut paper.screen(),
            pokes,
            stop,
        )
        .await?;
    let took = began.elapsed();
    assert!(
        took >= DIALS + DURATION && took < DIALS + DURATION + RELEASE * 2,
        "{took:?}"
    );
    listener.view.release(true, &mut paper.screen())?;
    assert_eq!(paper.out().lines().count(), 2, "an event of each");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn how_long_a_node_was_not_heard_that_came_later_is_told() -> anyhow::Result<()> {
    let mut listener = listener(&[], &[])?;
    let mut paper = Paper::default();
    let (known, nodes) = watch::channel(Known::default());
    let mut wanted = Wanted {
        nodes: Some(nodes),
        ..wanted(&[])
    };
    tokio::spawn(async move {
        sleep(Duration::from_secs(60)).await;
        known.send_modify(|known| _ = known.value.insert("n1".to_owned()));
        pending::<()>().await;
    });
    let attend = |node: String, first: bool, sender: mpsc::Sender<Told>| async move {
        assert!(!first, "{node} came later");
        let out = Outbox { node, sender };
        out.say(Said::Lacking("not ready".to_owned())).await;
        sleep(Duration::from_millis(2300)).await;
        out.say(Said::Began).await;
        out.say(Said::Over).await;
    };
    let (pokes, stop) = (tokio_stream::pending(), pending());
    listener
        .run(
            &mut wanted,
            attend,
            watch::channel(false).0,
            &mut paper.screen(),
            pokes,
            stop,
        )
        .await?;
    assert_eq!(
        paper.err(),
        "n1: not heard: not ready\nn1: heard from now on, 2.3 s after it came to matter\n"
    );
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn nodes_that_matter_no_more_need_not_be_heard() -> anyhow::Result<()> {
    let mut listener = listener(&["never", "silent", "fine"], &[])?;
    let mut paper = Paper::default();
    let story = [
        ("never", Said::Lacking("no agent runs there".to_owned())),
        ("silent", Said::Began),
        ("silent", broke("gone")),
        ("fine", Said::Began),
    ];
    for (node, said) in story {
        listener.take(told(node, said), &mut paper.screen())?;
    }
    let every_node = Wanted {
        nodes: None,
        ..wanted(&[])
    };
    for (wanted, matter) in [
        (wanted(&["fine"]), [false, false]),
        (wanted(&["fine", "never"]), [true, false]),
        (wanted(&["silent"]), [false, true]),
        (every_node, [true, true]),
    ] {
        let mut paper = Paper::default();
        let matters = |name: &str| wanted.matters(name);
        let all = all_heard(&listener.nodes, matters, &mut paper.screen())?;
        assert_eq!(all, matter == [false, false], "{matter:?}");
        let said = paper.err();
        let lines: Vec<_> = said.lines().collect();
        assert_eq!(lines.len(), 2, "each is told of: {lines:?}");
        for ((name, matters), line) in ["never", "silent"].into_iter().zip(matter).zip(lines) {
            let gone = line.ends_with("; nothing that was asked for is there now");
            assert!(line.starts_with(name) && gone != matters, "{line}");
        }
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_gap_begins_with_the_last_message() -> anyhow::Result<()> {
    let mut listener = listener(&["n1"], &[])?;
    let mut paper = Paper::default();
    let message = || Said::Message(Box::default());
    let story = [
        (1, Said::Began),
        (5, message()),
        // It took so long to notice.
        (10, broke("no sign of life")),
        (2, Said::Lacking("its agent is not ready".to_owned())),
        (1, Said::Lacking("its agent is not ready".to_owned())),
        (1, Said::Began),
    ];
    for (seconds, said) in story {
        tokio::time::advance(Duration::from_secs(seconds)).await;
        listener.take(told("n1", said), &mut paper.screen())?;
    }
    let said = paper.err();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 4, "each reason once: {lines:?}");
    assert_eq!(
        lines[..3],
        [
            "n1: not heard any more: no sign of life; trying again",
            "n1: not heard: its agent is not ready",
            "n1: books: none came from the agent",
        ]
    );
    let gap = "n1: heard again; what happened there in the 14.0 s since ";
    assert!(lines[3].starts_with(gap), "{lines:?}");
    Ok(())
}

/// What is known of streams, as it is told to a printer.
struct Shown(Rc<RefCell<Vec<String>>>);

impl Printer for Shown {
    fn event(&mut self, _: &v1::Event, _: &Who, _: &mut dyn io::Write) -> io::Result<()> {
        Ok(())
    }

    fn news(&mut self, news: News<'_>, _: &mut dyn io::Write) -> io::Result<()> {
        let told = match news {
            News::Silent(node, _) => format!("{node} silent"),
            News::Gone(node) => format!("{node} gone"),
            News::Heard(_) | News::Books(_) | News::Lacking(..) => return Ok(()),
        };
        self.0.borrow_mut().push(told);
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_not_heard_is_shown_while_it_matters() -> anyhow::Result<()> {
    let shown = Rc::default();
    let printer = Shown(Rc::clone(&shown));
    let mut listener = Listener {
        view: View::of_nodes(Format::Custom(Box::new(printer)), None),
        ..listener(&["n1", "n2"], &[])?
    };
    let mut paper = Paper::default();
    for node in ["n1", "n2"] {
        listener.take(told(node, Said::Began), &mut paper.screen())?;
    }
    // Its pods are gone, and it is heard all the same.
    listener.forget(&wanted(&["n1"]), &mut paper.screen())?;
    assert!(shown.borrow().is_empty());
    listener.take(told("n2", broke("gone")), &mut paper.screen())?;
    for matters in [&["n1", "n2"][..], &["n1"], &["n1"]] {
        listener.forget(&wanted(matters), &mut paper.screen())?;
    }
    let lacking = Said::Lacking("no agent runs there".to_owned());
    listener.take(told("n2", lacking), &mut paper.screen())?;
    assert_eq!(*shown.borrow(), ["n2 silent", "n2 gone"]);
    listener.forget(&wanted(&["n1", "n2"]), &mut paper.screen())?;
    assert_eq!(*shown.borrow(), ["n2 silent", "n2 gone", "n2 silent"]);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn who_will_not_go_on_hears_of_the_break_and_that_is_it() -> anyhow::Result<()> {
    let mut listener = listener(&["n1"], &[])?;
    let mut paper = Paper::default();
    assert!(!listener.hear(told("n1", Said::Began), &mut paper.screen())?);
    let why = "gone".to_owned();
    let for_good = Said::Broke {
        why,
        for_good: true,
    };
    assert!(
        listener.hear(told("n1", for_good), &mut paper.screen())?,
        "it ends"
    );
    assert!(!all_heard(&listener.nodes, |_| true, &mut paper.screen())?);
    let said = paper.err();
    assert!(said.starts_with("n1: not heard any more: gone\n"), "{said}");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_begins_anew_has_the_place_of_the_one_before() -> anyhow::Result<()> {
    let mut listener = listener(&["n1"], &[])?;
    let mut paper = Paper::default();
    for _ in 0..3 {
        listener.take(told("n1", Said::Began), &mut paper.screen())?;
        listener.take(told("n1", batch(&[1])), &mut paper.screen())?;
        listener.take(told("n1", broke("gone")), &mut paper.screen())?;
    }
    listener.take(told("n1", Said::Began), &mut paper.screen())?;
    assert_eq!(listener.nodes["n1"].stream, Some(0));
    listener.view.close(&mut paper.screen())?;
    let said = paper.err();
    let books = said.lines().filter(|line| line.contains("books: "));
    assert_eq!(books.count(), 4, "of each stream: {said}");
    Ok(())
}
