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
mod tests;
