//! TCP sessions that are open before anybody listens, and those that go on.

use std::{collections::HashMap, time::Duration};

use dinle_ebpf::{Kind, tcp::SOCKETS_MAX};
use tokio::{task::block_in_place, time::Instant};

use crate::kernel::{Programs, Wanted};

/// Sessions are looked at so often in each interval: a report comes late by a tenth of it, and by a second at least.
const LOOKS: u32 = 10;

/// What the kernel half remembers of TCP sessions.
#[derive(Default)]
pub(super) struct Sessions {
    /// Cgroups that existed at the last look, and whether their sessions were listened to.
    cgroups: HashMap<u64, bool>,
    /// Somebody listened to some.
    remembered: bool,
    /// Those that go on are reported on when nothing was told of them for so long.
    interval: Option<Duration>,
    /// When they were looked at.
    looked: Option<Instant>,
    /// How many began while there was no room to remember them.
    unremembered: u64,
    /// Why those that were open before are not found.
    unfound: Option<String>,
    /// Why those that go on are not reported on.
    unreported: Option<String>,
}

impl Sessions {
    /// What streams are told of them.
    pub(super) fn notes(&self) -> impl Iterator<Item = String> {
        let Self {
            unremembered,
            unfound,
            unreported,
            ..
        } = self;
        let unfound = unfound.as_ref().map(|error| {
            format!("TCP sessions that were open before are told only when they end ({error})")
        });
        let unreported = unreported
            .as_ref()
            .map(|error| format!("TCP sessions that go on are told only when they end ({error})"));
        let unremembered = (*unremembered > 0).then(|| {
            format!(
                "{unremembered} TCP sessions began while {SOCKETS_MAX} others were open: they are told without their beginning, and some \
                 without their process"
            )
        });
        [unfound, unreported, unremembered].into_iter().flatten()
    }

    /// Makes the kernel half remember the sessions that are wanted now, those that are open already included.
    pub(super) fn follow(
        &mut self,
        programs: &mut Programs,
        interval: Option<Duration>,
        wanted: &[Wanted],
    ) {
        const KINDS: u64 = Kind::TcpSession.bit()
            | Kind::TcpConnect.bit()
            | Kind::TcpReset.bit()
            | Kind::TcpRetransmit.bit();
        let now: HashMap<u64, bool> = wanted
            .iter()
            .map(|want| (want.cgroup_id, want.kinds & KINDS != 0))
            .collect();
        let before = std::mem::replace(&mut self.cgroups, now);
        let remembered = self.cgroups.values().any(|wanted| *wanted);
        self.interval = interval.filter(|_| remembered);
        let changed = std::mem::replace(&mut self.remembered, remembered) != remembered;
        // In a cgroup that is new all sessions are heard of from the first on.
        let found = self
            .cgroups
            .iter()
            .any(|(id, wanted)| *wanted && before.get(id).is_some_and(|listened| !listened));
        let done = block_in_place(|| {
            if let Some(interval) = interval {
                programs.set_session_interval(interval)?;
            }
            if changed {
                // Those that nobody listens to go on unheard, so that nothing is known of them any more.
                programs.forget_sessions()?;
            }
            if found || remembered && before.is_empty() {
                programs.find_sessions()?;
                self.unfound = None;
            }
            Ok::<_, String>(())
        });
        if !remembered {
            (self.unfound, self.unreported) = (None, None);
        }
        if let Err(error) = done {
            tracing::error!("{error}");
            // It holds until they are found: what nobody listens to any more needs none.
            self.unfound = Some(error);
        }
    }

    /// Makes the kernel half report on those that go on. Whether there is something new to tell streams.
    pub(super) fn tick(&mut self, programs: &mut Programs) -> bool {
        if !self.remembered {
            return false;
        }
        let before = (self.unremembered, self.unreported.is_some());
        let done = programs.unremembered_sessions().and_then(|unremembered| {
            self.unremembered = unremembered;
            let Some(interval) = self.interval else {
                return Ok(());
            };
            let due = |looked: Instant| looked.elapsed() >= interval / LOOKS;
            if self.looked.is_none_or(due) {
                self.looked = Some(Instant::now());
                // Two system calls for each session that is remembered.
                block_in_place(|| programs.report_sessions(interval))?;
            }
            Ok(())
        });
        if let (Err(error), None) = (&done, &self.unreported) {
            tracing::error!("{error}");
        }
        self.unreported = done.err();
        before != (self.unremembered, self.unreported.is_some())
    }
}
