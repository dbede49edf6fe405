//! What is added up, by pod and subject.

use std::{cmp::Ordering, collections::BTreeMap};

use crate::client::{columns::Who, text::NONE};

/// Rows that are added up apart: some 5 MiB. What comes beyond has a row together.
pub(super) const ROWS_MAX: usize = 10_000;
pub(super) const OTHERS: &str = "(others)";

/// Columns that tell of the pod. Cells of a row begin with them.
pub(super) const WHO: [&str; 4] = ["NODE", "NAMESPACE", "POD", "CONTAINER"];
/// Where these are in them.
pub(super) const NODE: usize = 0;
pub(super) const NAMESPACE: usize = 1;
pub(super) const POD: usize = 2;
pub(super) const CONTAINER: usize = 3;

/// Amounts by the cells of a row.
pub(super) type Rows = BTreeMap<Vec<String>, Vec<u64>>;

/// The cells of a row: who it was, and what.
pub(super) fn key(who: &Who, cells: Vec<String>) -> Vec<String> {
    let Who {
        node,
        namespace,
        pod,
        container,
        container_id: _,
    } = who.clone();
    let mut key = vec![node, namespace, pod, container];
    key.extend(cells);
    key
}

/// Adds amounts to a row. If there is no room for one more, it is that of all others.
pub(super) fn add(rows: &mut Rows, mut key: Vec<String>, amounts: &[u64]) {
    if rows.len() >= ROWS_MAX && !rows.contains_key(&key) {
        key = vec![NONE.to_owned(); key.len()];
        if let Some(last) = key.last_mut() {
            OTHERS.clone_into(last);
        }
    }
    add_to(rows.entry(key).or_default(), amounts);
}

/// Adds amounts to amounts, of which either may be more.
pub(super) fn add_to(sum: &mut Vec<u64>, amounts: &[u64]) {
    let len = sum.len().max(amounts.len());
    sum.resize(len, 0);
    for (sum, more) in sum.iter_mut().zip(amounts) {
        *sum += more;
    }
}

/// Nothing at all comes last.
pub(super) fn largest_first(a: f64, b: f64) -> Ordering {
    match (a.is_nan(), b.is_nan()) {
        (false, false) => b.total_cmp(&a),
        (a, b) => a.cmp(&b),
    }
}

/// By which column rows are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Order {
    /// Its number, of those of text and then those of numbers.
    pub(super) column: usize,
    pub(super) reversed: bool,
}

impl Order {
    /// Of two rows, with their numbers. Texts are in their order, numbers begin with the largest.
    pub(super) fn of(self, a: (&[String], &[f64]), b: (&[String], &[f64])) -> Ordering {
        let Self { column, reversed } = self;
        let order = match column.checked_sub(a.0.len()) {
            None => a.0[column].cmp(&b.0[column]),
            Some(at) => largest_first(a.1[at], b.1[at]),
        };
        let order = if reversed { order.reverse() } else { order };
        order.then_with(|| a.0.cmp(b.0))
    }
}
