//! Opens and deletions of files.

use dinle_proto::v1::{self, event::Detail};

use super::{Drawing, Number, Subject, Unit, number};
use crate::client::{text, top::sums::Rows};

/// Opens and deletions of files.
pub(in super::super) struct Files;

impl Subject for Files {
    fn name(&self) -> &'static str {
        "files"
    }

    fn kinds(&self) -> &'static [v1::Kind] {
        &[v1::Kind::FileOpen, v1::Kind::FileDelete]
    }

    fn texts(&self) -> &'static [&'static str] {
        &["PATH"]
    }

    fn numbers(&self) -> &'static [Number] {
        const NUMBERS: &[Number] = &[
            number("OPENS/s", Unit::Count),
            number("WRITES/s", Unit::Count),
            number("FAILED/s", Unit::Count),
            number("DELETED/s", Unit::Count),
        ];
        NUMBERS
    }

    fn take(&mut self, event: &v1::Event, _: &str) -> Option<(Vec<String>, Vec<u64>)> {
        /// include/uapi/asm-generic/fcntl.h
        const O_ACCMODE: u32 = 3;
        let path = |path: &str, filename: &str| {
            let shown = if path.is_empty() { filename } else { path };
            vec![text::or_none(shown).to_owned()]
        };
        if let Some(Detail::FileOpen(open)) = &event.detail {
            let write = open.flags & O_ACCMODE != 0;
            let sums = [1, write.into(), (open.error != 0).into(), 0];
            return Some((path(&open.path, &open.filename), sums.to_vec()));
        }
        let Some(Detail::FileDelete(delete)) = &event.detail else {
            return None;
        };
        let failed = delete.error != 0;
        let sums = [0, 0, failed.into(), (!failed).into()];
        Some((path(&delete.path, &delete.filename), sums.to_vec()))
    }

    fn drawing_title(&self) -> &'static str {
        "what was done"
    }

    fn drawing(&self, rows: &Rows, chosen: &dyn Fn(&[String]) -> bool) -> Drawing {
        let mut all = vec![0; self.numbers().len()];
        for (_, sums) in rows.iter().filter(|(key, _)| chosen(key)) {
            crate::client::top::sums::add_to(&mut all, sums);
        }
        let parts = ["opened", "to write", "failed", "deleted"];
        let parts = parts.map(str::to_owned).into_iter().zip(all);
        Drawing::Parts(parts.collect())
    }
}
