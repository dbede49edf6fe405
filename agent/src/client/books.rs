//! The agent's books of a stream, held against what this client counted itself.

use std::{collections::BTreeMap, fmt};

use dinle_proto::v1;

use super::text;

/// Stages at which events have their numbers already.
const NUMBERED: [i32; 2] = [
    v1::LossStage::ClientQueue as i32,
    v1::LossStage::Connection as i32,
];

/// Counts what a stream brings, and checks every heartbeat's books against it.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Events that came, by kind.
    seen: BTreeMap<i32, u64>,
    /// Losses that were told, by kind and stage.
    told: BTreeMap<(i32, i32), u64>,
    last_sequence: u64,
    /// Sequence numbers before the last that no batch had.
    missing: u64,
    /// Of the last heartbeat, with `seen` as it was then.
    last: Option<(Vec<v1::KindBooks>, BTreeMap<i32, u64>)>,
    wrong: Option<String>,
}

/// The last books of all kinds together, and what was told to be lost since then.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    matched: u64,
    delivered: u64,
    queued: u64,
    /// Queued for a stream whose place another took.
    untold: u64,
    /// By stage.
    lost: BTreeMap<i32, u64>,
    /// Not in the books yet.
    lost_since: u64,
    /// The first contradiction.
    pub(super) wrong: Option<String>,
}

impl Totals {
    /// Adds those of another stream.
    pub(super) fn add(&mut self, other: &Self) {
        let Self {
            matched,
            delivered,
            queued,
            untold,
            lost,
            lost_since,
            wrong,
        } = other;
        self.matched += matched;
        self.delivered += delivered;
        self.queued += queued;
        self.untold += untold;
        for (stage, count) in lost {
            *self.lost.entry(*stage).or_default() += count;
        }
        self.lost_since += lost_since;
        if self.wrong.is_none() {
            self.wrong.clone_from(wrong);
        }
    }

    /// Events that do not come, as far as is known.
    pub(super) fn lost(&self) -> u64 {
        self.lost.values().sum::<u64>() + self.lost_since + self.untold
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            matched,
            delivered,
            queued,
            untold,
            lost,
            lost_since,
            wrong: _,
        } = self;
        let number = |number: u64| text::thousands(number);
        let in_books = lost.values().sum();
        write!(
            f,
            "matched {} = delivered {}",
            number(*matched),
            number(*delivered)
        )?;
        if *queued > 0 {
            write!(f, " + queued {}", number(*queued))?;
        }
        if *untold > 0 {
            write!(f, " + not told {}", number(*untold))?;
        }
        write!(f, " + lost {}", number(in_books))?;
        f.write_str(&in_stages(
            lost.iter().map(|(stage, count)| (*stage, *count)),
        ))?;
        match lost_since {
            0 => Ok(()),
            since => write!(f, ", and {} since", number(*since)),
        }
    }
}

/// ` (KERNEL_RING 7, CLIENT_QUEUE 2)`, or nothing of nothing.
fn in_stages(lost: impl Iterator<Item = (i32, u64)>) -> String {
    let stages: Vec<_> = lost
        .filter(|(_, count)| *count > 0)
        .map(|(stage, count)| format!("{} {}", text::stage(stage), text::thousands(count)))
        .collect();
    if stages.is_empty() {
        String::new()
    } else {
        format!(" ({})", stages.join(", "))
    }
}

impl Ledger {
    /// The last books of all kinds together.
    pub(super) fn totals(&self) -> Totals {
        let mut totals = Totals {
            lost_since: self.lost_since().values().sum(),
            wrong: self.wrong.clone(),
            ..Totals::default()
        };
        for books in self.last.iter().flat_map(|(books, _)| books) {
            totals.matched += books.matched;
            totals.delivered += books.delivered;
            totals.queued += books.queued;
            for lost in &books.lost {
                *totals.lost.entry(lost.stage).or_default() += lost.count;
            }
        }
        totals
    }

    /// The same of a stream of which nothing more comes: what was queued then and did not come is not told.
    pub(super) fn closed(&self) -> Totals {
        let mut totals = self.totals();
        let seen: u64 = self.seen.values().sum();
        let came = seen.saturating_sub(totals.delivered);
        let queued = std::mem::take(&mut totals.queued);
        totals.untold = queued.saturating_sub(came);
        // Those that are in no books were matched after these.
        totals.matched += came.saturating_sub(queued);
        totals.delivered += came;
        totals
    }

    pub(super) fn batch(&mut self, batch: &v1::EventBatch) {
        let v1::EventBatch {
            first_sequence,
            events,
        } = batch;
        for event in events {
            *self.seen.entry(event.kind).or_default() += 1;
        }
        if *first_sequence <= self.last_sequence {
            self.contradict(format!(
                "a batch begins with event number {first_sequence}, but number {} was here already",
                self.last_sequence
            ));
            return;
        }
        self.missing += first_sequence - self.last_sequence - 1;
        self.last_sequence = first_sequence + (events.len() as u64).saturating_sub(1);
    }

    /// Rows of a snapshot count as events, and have no numbers.
    pub(super) fn snapshot(&mut self, snapshot: &v1::Snapshot) {
        for event in &snapshot.events {
            *self.seen.entry(event.kind).or_default() += 1;
        }
    }

    pub(super) fn loss(&mut self, loss: &v1::Loss) {
        *self.told.entry((loss.kind, loss.stage)).or_default() += loss.count;
    }

    pub(super) fn heartbeat(&mut self, heartbeat: &v1::Heartbeat) {
        let books = &heartbeat.books;
        for kind in books {
            self.check(kind);
        }
        for (kind, seen) in self.seen.clone() {
            if !books.iter().any(|books| books.kind == kind) {
                self.contradict(format!(
                    "{seen} {} events came, but the agent keeps no books of them",
                    text::kind(kind)
                ));
            }
        }
        let queue_losses: u64 = books
            .iter()
            .flat_map(|books| &books.lost)
            .filter(|lost| NUMBERED.contains(&lost.stage))
            .map(|lost| lost.count)
            .sum();
        if self.missing > queue_losses {
            self.contradict(format!(
                "{} event numbers are missing, but the agent's books say that its queue and the connection lost {queue_losses}",
                self.missing
            ));
        }
        self.last = Some((books.clone(), self.seen.clone()));
    }

    fn check(&mut self, books: &v1::KindBooks) {
        let v1::KindBooks {
            kind,
            matched,
            delivered,
            queued,
            lost,
            fidelity: _,
        } = books;
        let name = text::kind(*kind);
        let accounted = delivered + queued + lost.iter().map(|lost| lost.count).sum::<u64>();
        if *matched != accounted {
            self.contradict(format!(
                "{name}: the agent's books say matched {matched}, but delivered, queued and lost make {accounted}"
            ));
        }
        let seen = self.seen.get(kind).copied().unwrap_or(0);
        if *delivered != seen {
            self.contradict(format!(
                "{name}: the agent's books say delivered {delivered}, but this client counted {seen}"
            ));
        }
        let told: Vec<_> = self
            .told
            .range((*kind, i32::MIN)..=(*kind, i32::MAX))
            .map(|((_, stage), told)| (*stage, *told))
            .collect();
        for (stage, told) in told {
            let booked: u64 = lost
                .iter()
                .filter(|lost| lost.stage == stage)
                .map(|lost| lost.count)
                .sum();
            // Losses that were not told yet are in the books first, never the other way round.
            if told > booked {
                self.contradict(format!(
                    "{name}: the agent told of {told} lost at {}, but its books say {booked}",
                    text::stage(stage)
                ));
            }
        }
    }

    /// The first contradiction is the one that tells something; others follow from it.
    fn contradict(&mut self, what: String) {
        self.wrong.get_or_insert(what);
    }

    /// All that came is in the books, and all that was told to be lost.
    pub(super) fn settled(&self) -> bool {
        let last = self.last.as_ref();
        last.is_some_and(|(_, seen)| *seen == self.seen) && self.lost_since().is_empty()
    }

    /// Losses that were told and are not in the last books, by kind. Those that the books had first are.
    fn lost_since(&self) -> BTreeMap<i32, u64> {
        let books = self.last.iter().flat_map(|(books, _)| books);
        let mut since: BTreeMap<(i32, i32), u64> = self.told.clone();
        for v1::KindBooks { kind, lost, .. } in books {
            for v1::StageLoss { stage, count } in lost {
                if let Some(told) = since.get_mut(&(*kind, *stage)) {
                    *told = told.saturating_sub(*count);
                }
            }
        }
        let mut by_kind = BTreeMap::new();
        for ((kind, _), count) in since.into_iter().filter(|(_, count)| *count > 0) {
            *by_kind.entry(kind).or_default() += count;
        }
        by_kind
    }

    /// What does not fit, if anything does not.
    pub(super) fn wrong(&self) -> Option<&str> {
        self.wrong.as_deref()
    }

    /// The books for the user, as lines.
    pub(super) fn summary(&self) -> String {
        let none = (Vec::new(), BTreeMap::new());
        let (books, seen_then) = self.last.as_ref().unwrap_or(&none);
        let mut lines = if self.last.is_some() {
            let kinds: Vec<_> = books.iter().map(equation).collect();
            format!("books: {}", kinds.join("; "))
        } else {
            "books: none came from the agent".to_owned()
        };
        let delivered = self
            .seen
            .iter()
            .map(|(kind, seen)| (*kind, seen - seen_then.get(kind).copied().unwrap_or(0)))
            .filter(|(_, count)| *count > 0)
            .collect();
        let since: Vec<_> = [("delivered", delivered), ("lost", self.lost_since())]
            .into_iter()
            .filter(|(_, by_kind)| !by_kind.is_empty())
            .map(|(what, by_kind)| format!("{what} {}", counts(&by_kind)))
            .collect();
        if !since.is_empty() {
            lines.push_str(&format!("\nnot in these books yet: {}", since.join("; ")));
        }
        lines
    }
}

/// A sentence on books in which something does not fit.
pub(super) fn contradiction(wrong: &str) -> String {
    format!("THE BOOKS DO NOT BALANCE: {wrong}")
}

/// `exec 1, exit 2`.
fn counts(by_kind: &BTreeMap<i32, u64>) -> String {
    let counts = by_kind.iter();
    let counts: Vec<_> = counts
        .map(|(kind, count)| format!("{} {}", text::kind(*kind), text::thousands(*count)))
        .collect();
    counts.join(", ")
}

/// `exec matched 52 = delivered 50 + lost 2 (CLIENT_QUEUE 2)`.
fn equation(books: &v1::KindBooks) -> String {
    let v1::KindBooks {
        kind,
        matched,
        delivered,
        queued,
        lost,
        fidelity: _,
    } = books;
    let queued = match queued {
        0 => String::new(),
        queued => format!(" + queued {}", text::thousands(*queued)),
    };
    let stages = in_stages(lost.iter().map(|lost| (lost.stage, lost.count)));
    format!(
        "{} matched {} = delivered {}{queued} + lost {}{stages}",
        text::kind(*kind),
        text::thousands(*matched),
        text::thousands(*delivered),
        text::thousands(lost.iter().map(|lost| lost.count).sum()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use v1::{Kind, LossStage};

    fn batch(first_sequence: u64, kinds: &[Kind]) -> v1::EventBatch {
        v1::EventBatch {
            first_sequence,
            events: kinds
                .iter()
                .map(|kind| v1::Event {
                    kind: (*kind).into(),
                    ..Default::default()
                })
                .collect(),
        }
    }

    fn books(
        kind: Kind,
        matched: u64,
        delivered: u64,
        queued: u64,
        lost: &[(LossStage, u64)],
    ) -> v1::KindBooks {
        v1::KindBooks {
            kind: kind.into(),
            matched,
            delivered,
            queued,
            lost: lost
                .iter()
                .map(|(stage, count)| v1::StageLoss {
                    stage: (*stage).into(),
                    count: *count,
                })
                .collect(),
            ..Default::default()
        }
    }

    fn heartbeat(books: &[v1::KindBooks]) -> v1::Heartbeat {
        v1::Heartbeat {
            books: books.to_vec(),
            ..Default::default()
        }
    }

    fn loss(stage: LossStage, count: u64) -> v1::Loss {
        v1::Loss {
            kind: Kind::Exec.into(),
            stage: stage.into(),
            count,
            ..Default::default()
        }
    }

    #[test]
    fn what_was_queued_for_a_stream_that_is_closed_is_not_told() {
        let told = |came: usize| {
            let mut ledger = Ledger::default();
            ledger.batch(&batch(1, &[Kind::Exec; 10]));
            ledger.heartbeat(&heartbeat(&[books(Kind::Exec, 47, 10, 37, &[])]));
            ledger.batch(&batch(11, &vec![Kind::Exec; came]));
            let mut totals = Totals::default();
            totals.add(&ledger.closed());
            (totals.to_string(), totals.lost())
        };
        let line = |text: &str| text.to_owned();
        assert_eq!(
            told(0),
            (line("matched 47 = delivered 10 + not told 37 + lost 0"), 37)
        );
        assert_eq!(
            told(30),
            (line("matched 47 = delivered 40 + not told 7 + lost 0"), 7)
        );
        assert_eq!(told(40), (line("matched 50 = delivered 50 + lost 0"), 0));
    }

    #[test]
    fn balanced_books_are_one_line() {
        let mut ledger = Ledger::default();
        ledger.batch(&batch(1, &[Kind::Exec, Kind::Exit, Kind::Exec]));
        ledger.heartbeat(&heartbeat(&[
            books(Kind::Exec, 2, 2, 0, &[]),
            books(Kind::Exit, 1, 1, 0, &[]),
        ]));
        assert_eq!(ledger.wrong(), None);
        assert_eq!(
            ledger.summary(),
            "books: exec matched 2 = delivered 2 + lost 0; exit matched 1 = delivered 1 + lost 0"
        );
    }

    #[test]
    fn losses_and_the_queue_are_in_the_line() {
        let mut ledger = Ledger::default();
        ledger.batch(&batch(1, &[Kind::Exec]));
        ledger.loss(&loss(LossStage::ClientQueue, 1204));
        ledger.batch(&batch(1206, &[Kind::Exec, Kind::Exec]));
        ledger.heartbeat(&heartbeat(&[books(
            Kind::Exec,
            1216,
            3,
            2,
            &[(LossStage::KernelRing, 7), (LossStage::ClientQueue, 1204)],
        )]));
        assert_eq!(ledger.wrong(), None);
        assert_eq!(
            ledger.summary(),
            "books: exec matched 1,216 = delivered 3 + queued 2 + lost 1,211 \
             (KERNEL_RING 7, CLIENT_QUEUE 1,204)"
        );
    }

    #[test]
    fn what_came_after_the_last_books_is_told() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.summary(), "books: none came from the agent");
        ledger.batch(&batch(1, &[Kind::Exec]));
        assert!(!ledger.settled());
        assert_eq!(
            ledger.summary(),
            "books: none came from the agent\nnot in these books yet: delivered exec 1"
        );
        ledger.heartbeat(&heartbeat(&[
            books(Kind::Exec, 1, 1, 0, &[]),
            books(Kind::Exit, 0, 0, 0, &[]),
        ]));
        assert!(ledger.settled());
        ledger.batch(&batch(2, &[Kind::Exec, Kind::Exit, Kind::Exit]));
        assert_eq!(
            ledger.summary(),
            "books: exec matched 1 = delivered 1 + lost 0; exit matched 0 = delivered 0 + lost 0\n\
             not in these books yet: delivered exec 1, exit 2"
        );
        assert_eq!(ledger.wrong(), None);
    }

    #[test]
    fn what_was_lost_after_the_last_books_is_told() {
        let mut ledger = Ledger::default();
        ledger.loss(&loss(LossStage::ClientQueue, 4));
        // The books have losses that were not told yet: what is told of them later is in them.
        let booked = [(LossStage::ClientQueue, 6), (LossStage::RateLimit, 1)];
        ledger.heartbeat(&heartbeat(&[books(Kind::Exec, 7, 0, 0, &booked)]));
        let line = "books: exec matched 7 = delivered 0 + lost 7 (CLIENT_QUEUE 6, RATE_LIMIT 1)";
        assert_eq!(ledger.summary(), line);
        ledger.loss(&loss(LossStage::ClientQueue, 2));
        assert!(ledger.settled());
        assert_eq!(ledger.summary(), line);
        ledger.loss(&loss(LossStage::ClientQueue, 1200));
        ledger.loss(&loss(LossStage::KernelRing, 4));
        assert!(!ledger.settled());
        let lost = "lost exec 1,204";
        assert_eq!(
            ledger.summary(),
            format!("{line}\nnot in these books yet: {lost}")
        );
        ledger.batch(&batch(1, &[Kind::Exec]));
        assert_eq!(
            ledger.summary(),
            format!("{line}\nnot in these books yet: delivered exec 1; {lost}")
        );
        assert_eq!(ledger.wrong(), None);
    }

    #[test]
    fn totals_are_of_all_kinds_and_streams() {
        let mut one = Ledger::default();
        one.heartbeat(&heartbeat(&[
            books(Kind::Exec, 9, 0, 7, &[(LossStage::KernelRing, 2)]),
            books(Kind::Exit, 3, 0, 2, &[(LossStage::ClientQueue, 1)]),
        ]));
        assert_eq!(
            one.totals().to_string(),
            "matched 12 = delivered 0 + queued 9 + lost 3 (KERNEL_RING 2, CLIENT_QUEUE 1)"
        );
        let mut two = Ledger::default();
        two.heartbeat(&heartbeat(&[books(
            Kind::Exec,
            1,
            0,
            0,
            &[(LossStage::KernelRing, 1)],
        )]));
        two.loss(&loss(LossStage::KernelRing, 5));
        let mut both = one.totals();
        both.add(&two.totals());
        assert_eq!(
            both.to_string(),
            "matched 13 = delivered 0 + queued 9 + lost 4 (KERNEL_RING 3, CLIENT_QUEUE 1), and 4 since"
        );
        assert_eq!(both.lost(), 8);
        assert_eq!(both.wrong, None);
        two.heartbeat(&heartbeat(&[books(Kind::Exec, 2, 1, 0, &[])]));
        both.add(&two.totals());
        assert!(both.wrong.is_some(), "one that is wrong makes all wrong");
        assert_eq!(
            Totals::default().to_string(),
            "matched 0 = delivered 0 + lost 0"
        );
    }

    #[test]
    fn every_contradiction_is_found() {
        type Story = fn(&mut Ledger);
        let table: [(Story, &str); 6] = [
            (
                |ledger| {
                    ledger.batch(&batch(1, &[Kind::Exec]));
                    ledger.heartbeat(&heartbeat(&[books(Kind::Exec, 2, 2, 0, &[])]));
                },
                "exec: the agent's books say delivered 2, but this client counted 1",
            ),
            (
                |ledger| {
                    ledger.batch(&batch(1, &[Kind::Exec]));
                    ledger.heartbeat(&heartbeat(&[books(Kind::Exec, 3, 1, 1, &[])]));
                },
                "exec: the agent's books say matched 3, but delivered, queued and lost make 2",
            ),
            (
                |ledger| {
                    ledger.loss(&loss(LossStage::KernelRing, 5));
                    let booked = [(LossStage::KernelRing, 4)];
                    ledger.heartbeat(&heartbeat(&[books(Kind::Exec, 4, 0, 0, &booked)]));
                },
                "exec: the agent told of 5 lost at KERNEL_RING, but its books say 4",
            ),
            (
                |ledger| {
                    ledger.batch(&batch(1, &[Kind::Exec]));
                    ledger.heartbeat(&heartbeat(&[]));
                },
                "1 exec events came, but the agent keeps no books of them",
            ),
            (
                |ledger| {
                    ledger.batch(&batch(3, &[Kind::Exec]));
                    let booked = [(LossStage::ClientQueue, 1)];
                    ledger.heartbeat(&heartbeat(&[books(Kind::Exec, 2, 1, 0, &booked)]));
                },
                "2 event numbers are missing, but the agent's books say that its queue and the connection lost 1",
            ),
            (
                |ledger| {
                    ledger.batch(&batch(1, &[Kind::Exec, Kind::Exec]));
                    ledger.batch(&batch(2, &[Kind::Exec]));
                },
                "a batch begins with event number 2, but number 2 was here already",
            ),
        ];
        for (story, expected) in table {
            let mut ledger = Ledger::default();
            story(&mut ledger);
            assert_eq!(ledger.wrong(), Some(expected));
        }
    }
}
