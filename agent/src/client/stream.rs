//! A stream from its plan to its last books.

mod ending;

use std::{
    collections::HashMap,
    future::Future,
    io,
    ops::ControlFlow,
    pin::pin,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use dinle_proto::v1::{self, subscribe_response::Message};
use tokio::time::{Instant, timeout_at};
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;

use super::{
    Screen,
    books::{self, Ledger, Totals},
    columns::{EventTable, Who},
    connect::{Place, SILENCE_MAX},
    json::Json,
    look::Tone,
    order::Order,
    pages, text,
    top::Poke,
};

pub(super) use self::ending::{Ending, interrupted};

/// How a stream is printed.
pub(super) enum Format {
    /// Events in columns.
    Table(EventTable),
    /// Events as JSON.
    Json(Json),
    /// Every message as JSON.
    Raw(Json),
    /// As a tool wants it.
    Custom(Box<dyn Printer>),
}

/// Prints what a stream brings in a way of its own.
pub(super) trait Printer {
    /// An event, or a row of a snapshot.
    fn event(&mut self, event: &v1::Event, who: &Who, out: &mut dyn io::Write) -> io::Result<()>;

    /// All rows of a snapshot have been given.
    fn snapshot_end(&mut self, _: &v1::Snapshot, _: &mut dyn io::Write) -> io::Result<()> {
        Ok(())
    }

    /// Something else happened. It may have enough.
    fn poke(&mut self, _: Poke, _: &mut dyn io::Write) -> io::Result<ControlFlow<()>> {
        Ok(ControlFlow::Continue(()))
    }

    /// Something is known of the streams themselves.
    fn news(&mut self, _: News<'_>, _: &mut dyn io::Write) -> io::Result<()> {
        Ok(())
    }

    /// The stream is over.
    fn end(&mut self, _: &mut dyn io::Write) -> io::Result<()> {
        Ok(())
    }
}

/// What is known of streams, besides what they bring.
pub(super) enum News<'a> {
    /// That of this node begins, or goes on.
    Heard(&'a str),
    /// That of this node does not, for that reason.
    Silent(&'a str, &'a str),
    /// Nothing that is asked for is on this node any more.
    Gone(&'a str),
    /// This node cannot tell of that kind, for that reason.
    Lacking(&'a str, v1::Kind, &'a str),
    /// The books of all of them together.
    Books(Totals),
}

/// How long a snapshot's interval was.
pub(super) fn length(snapshot: &v1::Snapshot) -> Duration {
    let time = |time: Option<prost_types::Timestamp>| {
        time.and_then(|time| SystemTime::try_from(time).ok())
    };
    let ends = time(snapshot.start).zip(time(snapshot.end));
    ends.and_then(|(start, end)| end.duration_since(start).ok())
        .unwrap_or_default()
}

/// What a client makes of a stream, or of those of several nodes.
pub(super) struct View {
    format: Format,
    streams: Vec<Heard>,
    /// Puts in order what comes from several nodes. One node's events are printed as they come.
    order: Option<Order>,
    /// The header is printed.
    headed: bool,
    /// Streams of whose snapshots the rows have been given since the last end of a round.
    round: Vec<StreamId>,
    /// The longest of these snapshots, without its rows: what a round took. The last one of a stream may be much shorter.
    longest: v1::Snapshot,
    /// The books of streams whose place others took.
    before: Totals,
}

/// What is known of a stream.
#[derive(Default)]
struct Heard {
    ledger: Ledger,
    /// Of the plan.
    node: String,
    /// By cgroup id. Grows with the cgroups that this stream hears of, by about 200 bytes each.
    names: HashMap<u64, Who>,
    /// What the agent said last that it cannot hear.
    notes: Vec<String>,
    /// Of which kinds it tells less than everything.
    fidelity: HashMap<i32, i32>,
    /// It is over.
    over: bool,
    /// The books of a stream before it did not balance.
    wrong_before: bool,
}

/// Number of a stream in a [`View`].
pub(super) type StreamId = usize;

/// Prints messages until the stream is over. `pokes` are for the printer.
pub(super) async fn follow(
    messages: impl Stream<Item = Result<v1::SubscribeResponse, Status>>,
    stop: impl Future<Output = ()>,
    pokes: impl Stream<Item = Poke>,
    view: &mut View,
    screen: &mut Screen<'_>,
) -> anyhow::Result<Ending> {
    let mut messages = pin!(messages);
    let mut stop = pin!(stop);
    let mut pokes = pin!(pokes);
    let mut silent_at = Instant::now() + SILENCE_MAX;
    loop {
        let next = tokio::select! {
            biased;
            () = &mut stop => return Ok(Ending::Interrupted),
            Some(poke) = pokes.next() => {
                if let Some(ending) = view.poke(poke, screen)? {
                    return Ok(ending);
                }
                continue;
            }
            next = timeout_at(silent_at, messages.next()) => next,
        };
        silent_at = Instant::now() + SILENCE_MAX;
        let response = match next {
            Err(_) => return Ok(Ending::Silence),
            Ok(None) => return Ok(Ending::Unfinished),
            Ok(Some(Err(status))) => return Ok(Ending::Failed(status)),
            Ok(Some(Ok(response))) => response,
        };
        if let Some(ending) = view.message(0, Instant::now(), response, screen)? {
            return Ok(ending);
        }
    }
}

impl View {
    /// Of the stream of one agent, which is number 0.
    pub(super) fn new(format: Format) -> Self {
        Self {
            format,
            streams: vec![Heard::default()],
            order: None,
            headed: false,
            round: Vec::new(),
            longest: v1::Snapshot::default(),
            before: Totals::default(),
        }
    }

    /// Of the streams of several nodes; prints at most so many events.
    pub(super) fn of_nodes(format: Format, count: Option<u64>) -> Self {
        Self {
            streams: Vec::new(),
            order: Some(Order::new(count)),
            ..Self::new(format)
        }
    }

    /// One more stream, of that node.
    pub(super) fn stream(&mut self, node: &str) -> StreamId {
        self.streams.push(Heard {
            node: node.to_owned(),
            ..Heard::default()
        });
        self.streams.len() - 1
    }

    /// The books of the last heartbeat are of all that came from that one, so that it can be left.
    pub(super) fn settled(&self, stream: StreamId) -> bool {
        self.streams[stream].ledger.settled()
    }

    /// Another stream takes the place of that one, whose books are told.
    pub(super) fn begin_anew(
        &mut self,
        stream: StreamId,
        screen: &mut Screen<'_>,
    ) -> io::Result<()> {
        let several = self.order.is_some();
        let before = std::mem::take(&mut self.streams[stream]);
        before.tell(Tone::Plain, &before.ledger.summary(), several, screen)?;
        self.before.add(&before.ledger.closed());
        self.streams[stream] = Heard {
            node: before.node,
            names: before.names,
            wrong_before: before.wrong_before || before.ledger.wrong().is_some(),
            ..Heard::default()
        };
        Ok(())
    }

    /// The stream of the only agent broke.
    pub(super) fn broke(
        &mut self,
        place: &Place,
        why: &str,
        screen: &mut Screen<'_>,
    ) -> io::Result<()> {
        let heard = &mut self.streams[0];
        if heard.node.is_empty() {
            // It told of nothing yet.
            heard.node = place.to_string();
        }
        let node = heard.node.clone();
        self.silent(&node, why, screen)
    }

    /// Nothing comes from that node.
    pub(super) fn silent(
        &mut self,
        node: &str,
        why: &str,
        screen: &mut Screen<'_>,
    ) -> io::Result<()> {
        self.tell_printer(News::Silent(node, why), screen)
    }

    /// Nothing that is asked for is on that node any more.
    pub(super) fn gone(&mut self, node: &str, screen: &mut Screen<'_>) -> io::Result<()> {
        self.tell_printer(News::Gone(node), screen)
    }

    fn tell_printer(&mut self, news: News<'_>, screen: &mut Screen<'_>) -> io::Result<()> {
        match &mut self.format {
            Format::Custom(printer) => printer.news(news, screen.out),
            Format::Table(_) | Format::Json(_) | Format::Raw(_) => Ok(()),
        }
    }

    /// The books of all streams.
    fn totals(&self) -> Totals {
        let mut totals = self.before.clone();
        for heard in &self.streams {
            totals.add(&heard.ledger.totals());
        }
        totals
    }

    /// That one was over, and goes on.
    pub(super) fn again(&mut self, stream: StreamId) {
        self.streams[stream].over = false;
    }

    /// Nothing more comes from that one.
    pub(super) fn over(&mut self, stream: StreamId) {
        self.streams[stream].over = true;
    }

    /// Takes a message of a stream, which arrived then.
    pub(super) fn message(
        &mut self,
        from: StreamId,
        arrived: Instant,
        response: v1::SubscribeResponse,
        screen: &mut Screen<'_>,
    ) -> anyhow::Result<Option<Ending>> {
        if let Format::Raw(json) = &self.format {
            json.line(&response, screen.out)?;
            screen.out.flush()?;
        }
        // A message that only newer clients know is a sign of life all the same.
        let Some(message) = response.message else {
            return Ok(None);
        };
        let several = self.order.is_some();
        let booked = matches!(message, Message::Loss(_) | Message::Heartbeat(_));
        let heard = &mut self.streams[from];
        let mut ending = None;
        match message {
            Message::Plan(plan) => {
                let before = std::mem::replace(&mut heard.node, plan.node.clone());
                heard.notes.clone_from(&plan.notes);
                for workload in &plan.workloads {
                    heard.name(workload);
                }
                // What holds was told when it began.
                for (tone, warning) in pages::warnings(&plan) {
                    if plan.resumed {
                        break;
                    }
                    heard.tell(tone, &warning, several, screen)?;
                }
                if let Format::Table(table) = &mut self.format
                    && !std::mem::replace(&mut self.headed, true)
                {
                    table.header(screen.out)?;
                    screen.out.flush()?;
                }
                if before != plan.node && !before.is_empty() {
                    self.gone(&before, screen)?;
                }
                self.tell_printer(News::Heard(&plan.node), screen)?;
                for kind in plan.capabilities.iter().filter(|kind| !kind.available) {
                    let news = News::Lacking(&plan.node, kind.kind(), &kind.reason);
                    self.tell_printer(news, screen)?;
                }
            }
            Message::Workload(v1::WorkloadUpdate { workload }) => {
                if let Some(workload) = workload {
                    heard.name(&workload);
                }
            }
            Message::Batch(batch) => {
                heard.ledger.batch(&batch);
                match &mut self.order {
                    Some(order) => order.add(from, arrived, batch.events),
                    None => self.print(from, &batch.events, screen)?,
                }
                screen.out.flush()?;
            }
            Message::Snapshot(mut snapshot) => {
                heard.ledger.snapshot(&snapshot);
                // A round is what each node told of an interval.
                if self.round.contains(&from) {
                    self.end_round(screen)?;
                }
                let rows = std::mem::take(&mut snapshot.events);
                if length(&snapshot) >= length(&self.longest) {
                    self.longest = snapshot;
                }
                let rows = match &mut self.order {
                    Some(order) => order.admit(rows),
                    None => rows,
                };
                self.print(from, &rows, screen)?;
                self.round.push(from);
                if self.round.len() >= self.streams.iter().filter(|heard| !heard.over).count() {
                    self.end_round(screen)?;
                }
                screen.out.flush()?;
            }
            Message::Loss(loss) => {
                heard.ledger.loss(&loss);
                heard.tell(Tone::Alarm, &text::loss(&loss), several, screen)?;
            }
            Message::Heartbeat(heartbeat) => {
                let fine = heard.ledger.wrong().is_none();
                heard.ledger.heartbeat(&heartbeat);
                if fine && let Some(wrong) = heard.ledger.wrong() {
                    let wrong = books::contradiction(wrong);
                    heard.tell(Tone::Alarm, &wrong, several, screen)?;
                }
                for books in &heartbeat.books {
                    let before = heard
                        .fidelity
                        .insert(books.kind, books.fidelity)
                        .unwrap_or(0);
                    if before != books.fidelity {
                        let told = text::told(books.kind, books.fidelity);
                        heard.tell(Tone::Alarm, &told, several, screen)?;
                    }
                }
                let news = heartbeat.notes.iter();
                for note in news.filter(|note| !heard.notes.contains(note)) {
                    heard.tell(Tone::Aside, note, several, screen)?;
                }
                heard.notes.clone_from(&heartbeat.notes);
                // Behind the last books of a stream that may not go on comes a status that says why.
                if heartbeat.end != v1::EndReason::Unspecified as i32
                    && heartbeat.end != v1::EndReason::Permission as i32
                {
                    let reason = v1::EndReason::try_from(heartbeat.end);
                    ending = Some(Ending::Agent(reason.map_err(|_| heartbeat.end)));
                }
            }
        }
        if booked && let Format::Custom(_) = &self.format {
            let totals = self.totals();
            self.tell_printer(News::Books(totals), screen)?;
        }
        Ok(ending)
    }

    fn end_round(&mut self, screen: &mut Screen<'_>) -> anyhow::Result<()> {
        self.round.clear();
        let longest = std::mem::take(&mut self.longest);
        if let Format::Custom(printer) = &mut self.format {
            printer.snapshot_end(&longest, screen.out)?;
        }
        Ok(())
    }

    /// Prints what has been held long enough to be in order, or with `all` everything. Whether as many events were printed as were asked
    /// for.
    pub(super) fn release(&mut self, all: bool, screen: &mut Screen<'_>) -> anyhow::Result<bool> {
        let Some(order) = &mut self.order else {
            return Ok(false);
        };
        let (ready, enough) = order.take(all);
        for (from, event) in ready {
            self.print(from, &[event], screen)?;
        }
        screen.out.flush()?;
        Ok(enough)
    }

    /// Something else happened.
    pub(super) fn poke(
        &mut self,
        poke: Poke,
        screen: &mut Screen<'_>,
    ) -> anyhow::Result<Option<Ending>> {
        let Format::Custom(printer) = &mut self.format else {
            return Ok(None);
        };
        let flow = printer.poke(poke, screen.out)?;
        screen.out.flush()?;
        Ok(flow.is_break().then_some(Ending::Interrupted))
    }

    fn print(
        &mut self,
        from: StreamId,
        events: &[v1::Event],
        screen: &mut Screen<'_>,
    ) -> anyhow::Result<()> {
        let Heard { node, names, .. } = &self.streams[from];
        let unknown = Who::unknown(node);
        let who = |event: &v1::Event| names.get(&event.cgroup_id).unwrap_or(&unknown);
        match &mut self.format {
            Format::Table(table) => {
                for event in events {
                    table.event(&text::marked(event), who(event), screen.out)?;
                }
            }
            Format::Custom(printer) => {
                for event in events {
                    printer.event(&text::marked(event), who(event), screen.out)?;
                }
            }
            Format::Json(json) => {
                for event in events {
                    json.line(event, screen.out)?;
                }
            }
            // Printed as a message already.
            Format::Raw(_) => {}
        }
        Ok(())
    }

    /// Tells the books. Whether they balance.
    pub(super) fn close(mut self, screen: &mut Screen<'_>) -> anyhow::Result<bool> {
        let several = self.order.is_some();
        // Some nodes told of it, and the others will not any more.
        if !self.round.is_empty() {
            self.end_round(screen)?;
        }
        if let Format::Custom(mut printer) = self.format {
            printer.end(screen.out)?;
        }
        screen.out.flush()?;
        let beyond = self.order.as_ref().map_or(0, Order::beyond);
        if beyond > 0 {
            screen.say(&format!(
                "{} events that came beyond --count are not printed",
                text::thousands(beyond as u64)
            ))?;
        }
        for heard in &self.streams {
            heard.tell(Tone::Plain, &heard.ledger.summary(), several, screen)?;
            if let Some(wrong) = heard.ledger.wrong() {
                heard.tell(Tone::Alarm, &books::contradiction(wrong), several, screen)?;
            }
        }
        let wrong = |heard: &Heard| heard.wrong_before || heard.ledger.wrong().is_some();
        Ok(!self.streams.iter().any(wrong))
    }

    /// Tells the books, and how it ended.
    pub(super) fn finish(
        self,
        ending: Ending,
        place: &Place,
        screen: &mut Screen<'_>,
    ) -> anyhow::Result<ExitCode> {
        let balanced = self.close(screen)?;
        if let Some(error) = ending.error(place) {
            return Err(error);
        }
        Ok(match balanced {
            false => ExitCode::FAILURE,
            true => ExitCode::SUCCESS,
        })
    }
}

impl Heard {
    fn name(&mut self, workload: &v1::Workload) {
        let who = Who::new(workload, &self.node);
        self.names.insert(workload.cgroup_id, who);
    }

    /// Tells something of this stream. Where there are others, each line begins with the node.
    fn tell(
        &self,
        tone: Tone,
        lines: &str,
        several: bool,
        screen: &mut Screen<'_>,
    ) -> io::Result<()> {
        if !several {
            return screen.tell(tone, lines);
        }
        for line in lines.lines() {
            screen.tell(tone, &format!("{}: {line}", self.node))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use super::*;
    use crate::client::look::Look;

    /// How long each round was said to have been.
    struct Rounds(Rc<RefCell<Vec<Duration>>>);

    impl Printer for Rounds {
        fn event(&mut self, _: &v1::Event, _: &Who, _: &mut dyn io::Write) -> io::Result<()> {
            Ok(())
        }

        fn snapshot_end(&mut self, told: &v1::Snapshot, _: &mut dyn io::Write) -> io::Result<()> {
            self.0.borrow_mut().push(length(told));
            Ok(())
        }
    }

    #[test]
    fn a_round_took_as_long_as_the_longest_of_its_snapshots() -> anyhow::Result<()> {
        let rounds = Rc::default();
        let mut view = View::of_nodes(Format::Custom(Box::new(Rounds(Rc::clone(&rounds)))), None);
        let (one, two) = (view.stream("n1"), view.stream("n2"));
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut screen = Screen {
            look: Look::default(),
            err_colored: false,
            out: &mut out,
            err: &mut err,
        };
        let at = |seconds: i64| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let story = [
            (one, 0, 10),
            (two, 1, 11),
            // The first stream ends, with what came last, before the second has told of the interval before.
            (one, 10, 20),
            (one, 20, 21),
            (two, 11, 20),
        ];
        for (from, start, end) in story {
            let snapshot = v1::Snapshot {
                start: at(start),
                end: at(end),
                events: Vec::new(),
            };
            let message = Some(Message::Snapshot(snapshot));
            let response = v1::SubscribeResponse { message };
            view.message(from, Instant::now(), response, &mut screen)?;
        }
        let seconds: Vec<u64> = rounds.borrow().iter().map(Duration::as_secs).collect();
        assert_eq!(seconds, [10, 10, 9]);
        Ok(())
    }
}
