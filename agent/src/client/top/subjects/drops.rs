//! Packets that the kernel drops.

use std::collections::BTreeMap;

use dinle_proto::v1::{self, event::Detail};

use super::{Drawing, Number, Subject, Unit, number};
use crate::client::{text, tools::drop, top::sums::Rows};

/// Packets that the kernel drops.
pub(in super::super) struct Drops;

/// Where the reason is in a row's cells, from the end.
const REASON_FROM_END: usize = 3;

impl Subject for Drops {
    fn name(&self) -> &'static str {
        "drops"
    }

    fn kinds(&self) -> &'static [v1::Kind] {
        &[v1::Kind::DropCount]
    }

    fn texts(&self) -> &'static [&'static str] {
        &["REASON", "PROTO", "PORT"]
    }

    fn numbers(&self) -> &'static [Number] {
        const NUMBERS: &[Number] = &[
            number("PACKETS/s", Unit::Count),
            number("BYTES/s", Unit::Bytes),
        ];
        NUMBERS
    }

    fn take(&mut self, event: &v1::Event, _: &str) -> Option<(Vec<String>, Vec<u64>)> {
        let Some(Detail::DropCount(count)) = &event.detail else {
            return None;
        };
        let cells = vec![
            text::or_none(&count.reason).to_owned(),
            drop::protocol(count.protocol, count.ether_type),
            text::known_plain(count.port.into()),
        ];
        Some((cells, vec![count.count, count.bytes]))
    }

    fn in_snapshots(&self) -> bool {
        true
    }

    fn drawing_title(&self) -> &'static str {
        "packets by reason"
    }

    fn drawing(&self, rows: &Rows, chosen: &dyn Fn(&[String]) -> bool) -> Drawing {
        let mut reasons: BTreeMap<&str, u64> = BTreeMap::new();
        for (key, sums) in rows.iter().filter(|(key, _)| chosen(key)) {
            let reason = key.iter().nth_back(REASON_FROM_END - 1);
            let reason = reason.map_or("", String::as_str);
            *reasons.entry(reason).or_default() += self.height(sums);
        }
        let mut parts: Vec<(String, u64)> = reasons
            .into_iter()
            .map(|(reason, count)| (reason.to_owned(), count))
            .collect();
        // Names stay in their order where counts are equal.
        parts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        Drawing::Parts(parts)
    }
}
