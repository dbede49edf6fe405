//! Drawings: bars side by side, or one below the other.

use ratatui::{buffer::Buffer, layout::Rect, style::Style};

use crate::client::{text, top::subjects::Drawing};

/// Eighths of a cell, from below.
const UP: [&str; 9] = [" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];
/// Eighths of a cell, from the left.
const ALONG: [&str; 9] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉", "█"];
/// Of a bar that stands.
const WIDEST: usize = 8;
/// Of the name of one that lies.
const NAME_MAX: usize = 20;

/// A part of something in eighths of cells; what is there is seen.
fn eighths(value: u64, highest: u64, cells: u16) -> usize {
    if value == 0 || highest == 0 {
        return 0;
    }
    let all = f64::from(cells) * 8.0;
    ((value as f64 / highest as f64 * all).round() as usize).max(1)
}

/// Bars that stand side by side, each so wide.
fn standing(values: &[u64], each: usize, area: Rect, style: Style, buffer: &mut Buffer) {
    let highest = values.iter().copied().max().unwrap_or(0);
    for (at, value) in values.iter().enumerate() {
        let filled = eighths(*value, highest, area.height);
        for row in 0..area.height {
            let below = usize::from(area.height - 1 - row) * 8;
            let cell = UP[filled.saturating_sub(below).min(8)].repeat(each);
            let x = u16::try_from(at * each).unwrap_or(u16::MAX);
            write(buffer, area, (x, row), &cell, style);
        }
    }
}

/// Writes into an area, and not beyond it.
fn write(buffer: &mut Buffer, area: Rect, (x, y): (u16, u16), text: &str, style: Style) {
    if x < area.width && y < area.height {
        let room = usize::from(area.width - x);
        buffer.set_stringn(area.x + x, area.y + y, text, room, style);
    }
}

/// What happened in each interval, the newest on the right.
pub(super) fn past(values: &[u64], title: &str, area: Rect, bars: Style, buffer: &mut Buffer) {
    let shown = values.len().min(area.width.into());
    let values = &values[values.len() - shown..];
    let highest = text::thousands(values.iter().copied().max().unwrap_or(0));
    let title = format!("{title}, highest {highest}");
    write(buffer, area, (0, 0), &title, Style::new());
    let left = area.width - u16::try_from(shown).unwrap_or(area.width);
    let below = Rect {
        x: area.x + left,
        width: area.width - left,
        ..rest(area)
    };
    standing(values, 1, below, bars, buffer);
}

fn rest(area: Rect) -> Rect {
    Rect {
        y: area.y + 1.min(area.height),
        height: area.height.saturating_sub(1),
        ..area
    }
}

/// What a subject draws.
pub(super) fn drawing(
    drawing: &Drawing,
    title: &str,
    area: Rect,
    bars: Style,
    buffer: &mut Buffer,
) {
    match drawing {
        Drawing::Spans(buckets) => spans(buckets, title, area, bars, buffer),
        Drawing::Parts(parts) => {
            write(buffer, area, (0, 0), title, Style::new());
            lying(parts, rest(area), bars, buffer);
        }
    }
}

fn spans(buckets: &[u64], title: &str, area: Rect, bars: Style, buffer: &mut Buffer) {
    let all: u64 = buckets.iter().sum();
    let title = format!("{} {title}", text::thousands(all));
    write(buffer, area, (0, 0), &title, Style::new());
    let Some(first) = buckets.iter().position(|count| *count > 0) else {
        return;
    };
    let shown = buckets.get(first..).unwrap_or_default();
    let each = (usize::from(area.width) / shown.len()).clamp(1, WIDEST);
    let below = rest(area);
    let standing_area = Rect {
        height: below.height.saturating_sub(1),
        ..below
    };
    standing(shown, each, standing_area, bars, buffer);
    let axis = below.height.saturating_sub(1);
    let from = match first {
        0 => "0".to_owned(),
        first => bound(first),
    };
    write(buffer, below, (0, axis), &from, Style::new());
    let to = bound(first + shown.len());
    let end = (shown.len() * each).saturating_sub(to.chars().count());
    let end = end.max(from.chars().count() + 1);
    let x = u16::try_from(end).unwrap_or(u16::MAX);
    write(buffer, below, (x, axis), &to, Style::new());
}

/// Where a bucket begins: 2^i µs. People say 1 ms for 1024 µs here.
fn bound(bucket: usize) -> String {
    match bucket {
        0..10 => format!("{}µs", 1u64 << bucket),
        10..20 => format!("{}ms", 1u64 << (bucket - 10)),
        _ => format!("{}s", 1u64 << (bucket - 20).min(32)),
    }
}

/// Bars that lie one below the other, with their names and numbers.
fn lying(parts: &[(String, u64)], area: Rect, bars: Style, buffer: &mut Buffer) {
    let highest = parts.iter().map(|(_, count)| *count).max().unwrap_or(0);
    let shown = parts.iter().take(area.height.into());
    let widest = shown.clone().map(|(name, _)| name.chars().count()).max();
    let name_width = widest.unwrap_or(0).min(NAME_MAX);
    let numbers = text::thousands(highest).len() + 1;
    let room = usize::from(area.width).saturating_sub(name_width + 1 + numbers);
    let cells = u16::try_from(room).unwrap_or(u16::MAX);
    for (row, (name, count)) in (0..).zip(shown) {
        let name: String = text::clean(name).chars().take(name_width).collect();
        write(buffer, area, (0, row), &name, Style::new());
        let filled = eighths(*count, highest, cells);
        let bar = format!("{}{}", "█".repeat(filled / 8), ALONG[filled % 8]);
        let x = u16::try_from(name_width + 1).unwrap_or(u16::MAX);
        write(buffer, area, (x, row), &bar, bars);
        let behind = name_width + 1 + bar.chars().count() + usize::from(!bar.is_empty());
        let x = u16::try_from(behind).unwrap_or(u16::MAX);
        write(
            buffer,
            area,
            (x, row),
            &text::thousands(*count),
            Style::new(),
        );
    }
}
