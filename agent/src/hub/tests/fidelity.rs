//! What becomes of a stream that is told less.

use super::*;

fn wanted(hub: &Hub, web: &Arc<v1::Workload>) -> Demand {
    hub.demand([(7, web)], 64)
}

#[tokio::test]
async fn the_kernel_gives_what_the_most_demanding_is_told() {
    let (hub, _publisher) = hub();
    let web = pod(7, "web");
    let exec = v1::Kind::Exec;
    let (first, second) = (
        subscribe(&hub, request(&[exec])),
        subscribe(&hub, request(&[exec])),
    );
    let slot = wanted(&hub, &web).cgroups[0].slot;
    let told = |hub: &Hub| wanted(hub, &web).fidelity.get(&(slot, exec)).copied();
    assert_eq!(told(&hub), None);
    hub.set_fidelity(first.listener(), exec, Fidelity::Counted);
    assert_eq!(told(&hub), None, "the other one wants all");
    hub.set_fidelity(second.listener(), exec, Fidelity::Sampled);
    assert_eq!(told(&hub), Some(Fidelity::Sampled));
    // Whoever is told nothing wants nothing.
    hub.set_fidelity(second.listener(), exec, Fidelity::Detached);
    assert_eq!(told(&hub), Some(Fidelity::Counted));
    hub.set_fidelity(first.listener(), exec, Fidelity::Detached);
    let demand = wanted(&hub, &web);
    assert_eq!((demand.kinds, demand.cgroups[0].kinds), (0, 0));
    hub.set_fidelity(first.listener(), exec, Fidelity::Whole);
    assert_eq!(told(&hub), None);
    assert_ne!(wanted(&hub, &web).kinds, 0);
}

#[tokio::test]
async fn what_was_lost_before_it_was_detached_is_told_and_it_learns_of_it_at_once() {
    let (hub, mut publisher) = hub();
    let web = pod(7, "web");
    let exec = v1::Kind::Exec;
    let mut subscription = subscribe(
        &hub,
        v1::SubscribeRequest {
            heartbeat_interval: Some(prost_types::Duration {
                seconds: 60,
                nanos: 0,
            }),
            ..request(&[exec])
        },
    );
    let slot = wanted(&hub, &web).cgroups[0].slot;
    publisher.refresh();
    hub.set_fidelity(subscription.listener(), exec, Fidelity::Detached);
    // The reader has not seen it yet: what it counts now was lost before.
    publisher.lose(slot, exec, Stage::RateLimit, 5);
    publisher.refresh();
    publisher.lose(slot, exec, Stage::RateLimit, 7);
    publisher.lose(0, exec, Stage::RateLimit, 9);
    publisher.lose_everywhere(exec, Stage::KernelSkipped, 1);
    assert_eq!(publisher.targets(exec, &web), Targets::default());
    let mut messages = [next(&mut subscription).await, next(&mut subscription).await];
    // Losses and books come together.
    if let Message::Heartbeat(_) = messages[0] {
        messages.swap(0, 1);
    }
    let [Message::Loss(loss), Message::Heartbeat(heartbeat)] = messages else {
        panic!("{messages:?}");
    };
    assert_eq!(loss.count, 5);
    let books = &heartbeat.books[0];
    assert_eq!(
        (books.matched, books.fidelity()),
        (5, v1::Fidelity::Detached)
    );
    assert_eq!(subscription.listener().fidelity(exec), Fidelity::Detached);
}
