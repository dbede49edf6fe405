//! Tests that are not for this machine. To cargo they have passed.

use std::{fs::OpenOptions, io::Write as _, thread};

/// Names a file, to which a line is added for each of them.
const FILE: &str = "DINLE_SKIPPED_FILE";

/// Says why this test ends here, to whoever reads its output and to whoever counts.
///
/// # Panics
/// When whoever counts cannot be told.
pub fn skipped(why: &str) {
    let thread = thread::current();
    let line = format!("{}: {why}\n", thread.name().unwrap_or("a test"));
    eprint!("skipped: {line}");
    if let Some(file) = std::env::var_os(FILE) {
        let file = OpenOptions::new().create(true).append(true).open(file);
        // At once: others write there, too.
        let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
        written.unwrap_or_else(|error| panic!("{FILE}: {error}"));
    }
}
