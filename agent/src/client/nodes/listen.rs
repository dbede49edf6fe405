//! The streams of all nodes that matter as one.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    process::ExitCode,
    time::Duration,
};

use dinle_proto::v1;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_stream::{Stream, StreamExt as _};

use super::{
    Wanted,
    attend::{Attendant, GRACE, Moment, Outbox, Said, Told},
    every, in_context,
};
use crate::{
    client::{
        EXIT_PARTLY, Refused, Screen,
        args::Bounds,
        connect::{Client, Place},
        lasting::{LEAVE_MAX, Lasting},
        look::Tone,
        stream::{Format, StreamId, View, interrupted},
        text,
        top::Poke,
        watch::{explained, print_plan},
    },
    cluster::Cluster,
};

/// How often events that are in order by now are looked for.
const RELEASE: Duration = Duration::from_millis(100);
/// Messages that wait for the printer. When there are more, agents keep them.
const INBOX: usize = 256;

/// How often agents send their books where a number of events was asked for: with that many, the next books are waited for.
const SOON: Duration = Duration::from_secs(1);

/// What is asked of each of them.
pub(in crate::client) struct Asked {
    pub(in crate::client) request: v1::SubscribeRequest,
    pub(in crate::client) bounds: Bounds,
    /// Every namespace was asked for, and not just left open.
    pub(in crate::client) all_namespaces: bool,
}

/// A node, as it is known here.
#[derive(Default)]
struct Node {
    stream: Option<StreamId>,
    /// Its stream, while that is broken off.
    broken: Option<StreamId>,
    /// When it came to matter, if it did not from the start.
    came: Option<Instant>,
    /// When it was heard last.
    last: Option<Moment>,
    /// It was heard, and is not since then.
    silent: Option<Moment>,
    /// Why it is not, as told last.
    why: String,
    over: bool,
    /// It is not shown any more: nothing that is asked for is there.
    gone: bool,
}

/// Prints the events of all nodes that matter as one stream, until somebody ends it.
pub(in crate::client) async fn listen(
    cluster: &Cluster,
    asked: Asked,
    format: Format,
    screen: &mut Screen<'_>,
    pokes: impl Stream<Item = Poke>,
) -> anyhow::Result<ExitCode> {
    let Asked {
        mut request,
        bounds,
        all_namespaces,
    } = asked;
    if matches!(format, Format::Raw(_)) {
        let raw = "--raw prints the messages of one agent; name it with --address, without --kube";
        return Err(Refused(raw.to_owned()).into());
    }
    let selector = request.selector.take().unwrap_or_default();
    let selector = in_context(selector, all_namespaces, cluster);
    request.selector = Some(selector.clone());
    if bounds.count.is_some() {
        request.heartbeat_interval = prost_types::Duration::try_from(SOON).ok();
    }
    if bounds.explain {
        let ask = async |client: &mut Client, place: &Place| {
            explained(client, place, request.clone()).await
        };
        let (plans, code) = every(cluster, Some(&selector), screen, ask).await?;
        for plan in &plans {
            print_plan(plan, &format, screen)?;
        }
        return Ok(code);
    }
    let mut stop = pin!(interrupted()?);
    let mut wanted = tokio::select! {
        () = &mut stop => return Ok(ExitCode::SUCCESS),
        wanted = Wanted::look(cluster, Some(&selector), screen) => wanted?,
    };
    let first = wanted.names();
    if first.is_empty() {
        screen.say("no pod matches now; what starts later is heard")?;
    }
    let duration = bounds
        .duration
        .and_then(|duration| Duration::try_from(duration).ok());
    let ends = duration.and_then(|duration| Instant::now().checked_add(duration));
    let agents = wanted.agents.clone();
    let (leave, left) = watch::channel(false);
    let attend = |node: String, first: bool, sender: mpsc::Sender<Told>| {
        let attendant = Attendant {
            cluster: cluster.clone(),
            agents: agents.clone(),
            lasting: Lasting::new(request.clone(), bounds.reconnect),
            left: left.clone(),
            ends,
            first,
            out: Outbox { node, sender },
        };
        attendant.run()
    };
    let mut listener = Listener {
        view: View::of_nodes(format, bounds.count),
        ends,
        first,
        nodes: BTreeMap::new(),
        faults: Vec::new(),
        enough: None,
    };
    let result = listener
        .run(&mut wanted, attend, leave, screen, pokes, stop)
        .await;
    // What came before is told in any case.
    listener.view.release(true, screen)?;
    let balanced = listener.view.close(screen)?;
    result?;
    let all_heard = all_heard(&listener.nodes, |name| wanted.matters(name), screen)?;
    Ok(match (balanced, all_heard) {
        (false, _) => ExitCode::FAILURE,
        (true, false) => ExitCode::from(EXIT_PARTLY),
        (true, true) => ExitCode::SUCCESS,
    })
}

/// Tells which nodes are not heard at the end. Whether all that matter by then are.
fn all_heard(
    nodes: &BTreeMap<String, Node>,
    matters: impl Fn(&str) -> bool,
    screen: &mut Screen<'_>,
) -> anyhow::Result<bool> {
    let mut all = true;
    for (name, node) in nodes {
        let since = node.silent.map(|since| since.wall);
        if node.last.is_some() && since.is_none() {
            continue;
        }
        let how = match since {
            Some(since) => format!("not heard since {}", text::clock(Some(&since.into()))),
            None => "never heard".to_owned(),
        };
        let why = text::or_none(&node.why);
        if matters(name) {
            all = false;
            screen.tell(Tone::Alarm, &format!("{name}: {how}: {why}"))?;
        } else {
            // As when a node is taken out of the cluster.
            screen.say(&format!(
                "{name}: {how}: {why}; nothing that was asked for is there now"
            ))?;
        }
    }
    Ok(all)
}

struct Listener {
    view: View,
    /// When streams that may only last so long are over, but for those to which the way was long.
    ends: Option<Instant>,
    /// Names of the nodes that mattered at the start.
    first: BTreeSet<String>,
    nodes: BTreeMap<String, Node>,
    /// What keeps the lists from being up to date, as told last.
    faults: Vec<String>,
    /// There are as many events as were asked for, and the books of the nodes are waited for until then.
    enough: Option<Instant>,
}

impl Listener {
    /// `attend` keeps the stream of a node going, which may have mattered from the first, until `leave` tells it to leave.
    async fn run<A: Future<Output = ()> + Send + 'static>(
        &mut self,
        wanted: &mut Wanted,
        attend: impl Fn(String, bool, mpsc::Sender<Told>) -> A,
        leave: watch::Sender<bool>,
        screen: &mut Screen<'_>,
        pokes: impl Stream<Item = Poke>,
        mut stop: impl Future<Output = ()> + Unpin,
    ) -> anyhow::Result<()> {
        let mut pokes = pin!(pokes);
        let (sender, mut inbox) = mpsc::channel::<Told>(INBOX);
        // Ends them all when it is dropped.
        let mut attendants = JoinSet::new();
        let mut release = interval(RELEASE);
        release.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if let Some(until) = self.enough {
                let settled =
                    |node: &Node| node.stream.is_none_or(|stream| self.view.settled(stream));
                if self.nodes.values().all(settled) || Instant::now() >= until {
                    break;
                }
            }
            self.forget(wanted, screen)?;
            let over = self.ends.is_some_and(|ends| Instant::now() >= ends);
            for name in wanted.names() {
                if over || self.nodes.contains_key(&name) {
                    continue;
                }
                let first = self.first.contains(&name);
                let node = Node {
                    came: (!first).then(Instant::now),
                    ..Node::default()
                };
                self.nodes.insert(name.clone(), node);
                attendants.spawn(attend(name, first, sender.clone()));
            }
            tokio::select! {
                () = &mut stop => break,
                Some(poke) = pokes.next() => {
                    if self.view.poke(poke, screen)?.is_some() {
                        break;
                    }
                }
                () = wanted.changed() => {
                    let faults = wanted.faults();
                    for fault in faults.iter().filter(|fault| !self.faults.contains(fault)) {
                        screen.say(&format!("{fault}; nodes that come to matter meanwhile are not heard"))?;
                    }
                    self.faults = faults;
                }
                Some(told) = inbox.recv() => {
                    if self.hear(told, screen)? {
                        break;
                    }
                }
                _ = release.tick() => {
                    if self.release(&mut inbox, screen)? {
                        break;
                    }
                }
            }
        }
        // What came already is told, and counts in the books.
        leave.send_replace(true);
        let gone = async { while attendants.join_next().await.is_some() {} };
        // Agents find out by themselves, later.
        _ = timeout(LEAVE_MAX, gone).await;
        drop(attendants);
        while let Ok(told) = inbox.try_recv() {
            if self.enough.is_none()
                && let Said::Message(_) = told.said
            {
                self.take(told, screen)?;
            }
        }
        Ok(())
    }

    /// Nodes that are not heard are shown only while something that is asked for is there.
    fn forget(&mut self, wanted: &Wanted, screen: &mut Screen<'_>) -> anyhow::Result<()> {
        for (name, node) in &mut self.nodes {
            let gone = node.stream.is_none() && !wanted.matters(name);
            if gone == std::mem::replace(&mut node.gone, gone) {
                continue;
            }
            if gone {
                self.view.gone(name, screen)?;
            } else if node.stream.is_none() && !node.why.is_empty() {
                self.view.silent(name, &node.why, screen)?;
            }
        }
        Ok(())
    }

    /// Prints what is in order by now. Whether nothing more is to come.
    fn release(
        &mut self,
        inbox: &mut mpsc::Receiver<Told>,
        screen: &mut Screen<'_>,
    ) -> anyhow::Result<bool> {
        // While somebody who reads slowly kept this from going on, something came that may belong before what is due now.
        for _ in 0..INBOX {
            let Ok(told) = inbox.try_recv() else { break };
            if self.hear(told, screen)? {
                return Ok(true);
            }
        }
        if self.view.release(false, screen)? {
            self.enough.get_or_insert(Instant::now() + SOON + GRACE);
        }
        // A stream that goes on ends by itself, with its last books. Who has none by now is not waited for.
        let over = self.ends.map(|ends| Instant::now().duration_since(ends));
        let going = self.nodes.values().any(|node| node.stream.is_some());
        Ok(over.is_some_and(|over| over >= GRACE) && !going)
    }

    /// Takes what an attendant tells. Whether nothing more is to come.
    fn hear(&mut self, told: Told, screen: &mut Screen<'_>) -> anyhow::Result<bool> {
        // What comes after the books is not in them.
        let stream = self.nodes.get(&told.node).and_then(|node| node.stream);
        if self.enough.is_some() && stream.is_some_and(|stream| self.view.settled(stream)) {
            return Ok(false);
        }
        self.take(told, screen)?;
        if self.hopeless() {
            anyhow::bail!("no node can be heard");
        }
        Ok(self.nodes.values().all(|node| node.over))
    }

    /// None of the nodes that mattered at the start can be heard, nor was any other. Whoever waits for what starts later, or for an agent
    /// that was heard before, is told and waits on.
    fn hopeless(&self) -> bool {
        let begun = self.nodes.values().any(|node| node.last.is_some());
        let lacking = |name| {
            let node = self.nodes.get(name);
            node.is_some_and(|node| !node.why.is_empty())
        };
        !begun && !self.first.is_empty() && self.first.iter().all(lacking)
    }

    fn take(&mut self, told: Told, screen: &mut Screen<'_>) -> anyhow::Result<()> {
        let Told {
            node: name,
            at,
            said,
        } = told;
        let Self { view, nodes, .. } = self;
        let Some(node) = nodes.get_mut(&name) else {
            return Ok(());
        };
        match said {
            Said::Began => {
                node.stream = Some(match node.broken.take() {
                    Some(broken) => {
                        view.begin_anew(broken, screen)?;
                        broken
                    }
                    None => view.stream(&name),
                });
                node.last = Some(at);
                if let Some(since) = node.silent.take() {
                    screen.say(&format!(
                        "{name}: heard again; what happened there in the {:.1} s since {} is not told",
                        (at.clock - since.clock).as_secs_f64(),
                        text::clock(Some(&since.wall.into())),
                    ))?;
                } else if let Some(came) = node.came {
                    screen.say(&format!(
                        "{name}: heard from now on, {:.1} s after it came to matter",
                        (at.clock - came).as_secs_f64()
                    ))?;
                } else if !node.why.is_empty() {
                    screen.say(&format!("{name}: heard from now on"))?;
                }
                node.why.clear();
            }
            Said::Resumed => {
                node.last = Some(at);
                if let Some(stream) = node.broken.take() {
                    view.again(stream);
                    node.stream = Some(stream);
                }
                if let Some(since) = node.silent.take() {
                    screen.say(&format!(
                        "{name}: heard again after {:.1} s: what happened there meanwhile comes now, or is told as lost",
                        (at.clock - since.clock).as_secs_f64(),
                    ))?;
                }
                node.why.clear();
            }
            Said::Message(message) => {
                node.last = Some(at);
                if let Some(stream) = node.stream {
                    // How it ends is what its attendant tells.
                    view.message(stream, at.clock, *message, screen)?;
                }
            }
            Said::Broke { why, for_good } => {
                if let Some(stream) = node.stream.take() {
                    view.over(stream);
                    node.broken = Some(stream);
                }
                // What happened since the last message may not have come, even if it took a while to notice.
                node.silent = node.last;
                let again = if for_good { "" } else { "; trying again" };
                screen.tell(
                    Tone::Alarm,
                    &format!("{name}: not heard any more: {why}{again}"),
                )?;
                view.silent(&name, &why, screen)?;
                node.why = why;
                node.over = for_good;
            }
            Said::Lacking(why) => {
                if node.why != why {
                    screen.tell(Tone::Alarm, &format!("{name}: not heard: {why}"))?;
                    if !node.gone {
                        view.silent(&name, &why, screen)?;
                    }
                    node.why = why;
                }
            }
            Said::Over => {
                if let Some(stream) = node.stream.take() {
                    view.over(stream);
                }
                node.over = true;
            }
            Said::Refused(error) => return Err(error),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, future::pending, io, rc::Rc};

    use dinle_proto::v1::subscribe_response::Message;
    use tokio::time::sleep;

    use super::*;
    use crate::{
        client::{
            columns::Who,
            json::Json,
            nodes::tests::screen,
            stream::{News, Printer},
        },
        cluster::Known,
    };

    /// Knows these nodes, of which the first ones mattered at the start.
    fn listener(first: &[&str], later: &[&str]) -> anyhow::Result<Listener> {
        let names =
            |names: &[&str]| -> Vec<String> { names.iter().map(|&n| n.to_owned()).collect() };
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
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let mut listener = listener(first, later)?;
            for (name, said) in story {
                listener.take(told(name, said), &mut screen(&mut out, &mut err))?;
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
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let (sender, mut inbox) = mpsc::channel(INBOX);
        let mut heard = screen(&mut out, &mut err);
        for node in ["n1", "n2"] {
            listener.hear(told(node, Said::Began), &mut heard)?;
        }
        listener.hear(told("n1", batch(&[2, 4])), &mut heard)?;
        // It cannot be taken, since the output is not.
        sender.try_send(told("n2", batch(&[1, 3])))?;
        tokio::time::advance(crate::client::order::HELD).await;
        assert!(!listener.release(&mut inbox, &mut heard)?);
        let second = |second: u8| format!(r#"{{"time":"1970-01-01T00:00:0{second}Z"}}"#);
        let expected = [1, 2, 3, 4].map(second).join("\n") + "\n";
        assert_eq!(String::from_utf8(out)?, expected);
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
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut heard = screen(&mut out, &mut err);
        let (pokes, stop) = (tokio_stream::pending(), pending());
        listener
            .run(&mut wanted(&names), attend, leave, &mut heard, pokes, stop)
            .await?;
        let took = began.elapsed();
        assert!(
            took >= DIALS + DURATION && took < DIALS + DURATION + RELEASE * 2,
            "{took:?}"
        );
        listener.view.release(true, &mut heard)?;
        assert_eq!(
            String::from_utf8(out)?.lines().count(),
            2,
            "an event of each"
        );
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn how_long_a_node_was_not_heard_that_came_later_is_told() -> anyhow::Result<()> {
        let mut listener = listener(&[], &[])?;
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut heard = screen(&mut out, &mut err);
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
                &mut heard,
                pokes,
                stop,
            )
            .await?;
        assert_eq!(
            String::from_utf8(err)?,
            "n1: not heard: not ready\nn1: heard from now on, 2.3 s after it came to matter\n"
        );
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn nodes_that_matter_no_more_need_not_be_heard() -> anyhow::Result<()> {
        let mut listener = listener(&["never", "silent", "fine"], &[])?;
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut heard = screen(&mut out, &mut err);
        let story = [
            ("never", Said::Lacking("no agent runs there".to_owned())),
            ("silent", Said::Began),
            ("silent", broke("gone")),
            ("fine", Said::Began),
        ];
        for (node, said) in story {
            listener.take(told(node, said), &mut heard)?;
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
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let matters = |name: &str| wanted.matters(name);
            let all = all_heard(&listener.nodes, matters, &mut screen(&mut out, &mut err))?;
            assert_eq!(all, matter == [false, false], "{matter:?}");
            let said = String::from_utf8(err)?;
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
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut screen = screen(&mut out, &mut err);
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
            listener.take(told("n1", said), &mut screen)?;
        }
        let said = String::from_utf8(err)?;
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
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut heard = screen(&mut out, &mut err);
        for node in ["n1", "n2"] {
            listener.take(told(node, Said::Began), &mut heard)?;
        }
        // Its pods are gone, and it is heard all the same.
        listener.forget(&wanted(&["n1"]), &mut heard)?;
        assert!(shown.borrow().is_empty());
        listener.take(told("n2", broke("gone")), &mut heard)?;
        for matters in [&["n1", "n2"][..], &["n1"], &["n1"]] {
            listener.forget(&wanted(matters), &mut heard)?;
        }
        let lacking = Said::Lacking("no agent runs there".to_owned());
        listener.take(told("n2", lacking), &mut heard)?;
        assert_eq!(*shown.borrow(), ["n2 silent", "n2 gone"]);
        listener.forget(&wanted(&["n1", "n2"]), &mut heard)?;
        assert_eq!(*shown.borrow(), ["n2 silent", "n2 gone", "n2 silent"]);
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn who_will_not_go_on_hears_of_the_break_and_that_is_it() -> anyhow::Result<()> {
        let mut listener = listener(&["n1"], &[])?;
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut heard = screen(&mut out, &mut err);
        assert!(!listener.hear(told("n1", Said::Began), &mut heard)?);
        let why = "gone".to_owned();
        let for_good = Said::Broke {
            why,
            for_good: true,
        };
        assert!(listener.hear(told("n1", for_good), &mut heard)?, "it ends");
        assert!(!all_heard(&listener.nodes, |_| true, &mut heard)?);
        let said = String::from_utf8(err)?;
        assert!(said.starts_with("n1: not heard any more: gone\n"), "{said}");
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_begins_anew_has_the_place_of_the_one_before() -> anyhow::Result<()> {
        let mut listener = listener(&["n1"], &[])?;
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut heard = screen(&mut out, &mut err);
        for _ in 0..3 {
            listener.take(told("n1", Said::Began), &mut heard)?;
            listener.take(told("n1", batch(&[1])), &mut heard)?;
            listener.take(told("n1", broke("gone")), &mut heard)?;
        }
        listener.take(told("n1", Said::Began), &mut heard)?;
        assert_eq!(listener.nodes["n1"].stream, Some(0));
        listener.view.close(&mut heard)?;
        let said = String::from_utf8(err)?;
        let books = said.lines().filter(|line| line.contains("books: "));
        assert_eq!(books.count(), 4, "of each stream: {said}");
        Ok(())
    }
}
