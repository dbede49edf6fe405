//! A file that is changed for a new one at a size or an age. The old ones are compressed, and the oldest removed.
//!
//! `events.jsonl` is the one that is written; `events-20260131T235959.123Z.jsonl.gz` was closed at that time.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use flate2::{Compression as Level, write::GzEncoder};

use super::config::{Compression, FileSink};

/// What is told of processes is not for everybody on the node: a group may be let in.
const FILE_MODE: u32 = 0o640;
/// Of directories that are made.
const DIRECTORY_MODE: u32 = 0o750;
/// Between two tries to rename a file that could not be.
const TURN_AGAIN: Duration = Duration::from_secs(60);

/// The file while it is open.
struct Open {
    file: File,
    /// What of it is whole lines.
    bytes: u64,
    began: SystemTime,
}

/// One thread at a time tidies up.
#[derive(Default)]
struct Tidying {
    runs: bool,
    /// There is more to do when it has done.
    again: bool,
}

/// The file and the old ones.
pub(super) struct Rotated {
    config: FileSink,
    open: Option<Open>,
    /// It could not be renamed, and when that is tried again.
    turn_again: Option<Instant>,
    tidying: Arc<Mutex<Tidying>>,
    tidier: Option<JoinHandle<()>>,
}

impl Rotated {
    pub(super) fn new(config: FileSink) -> Self {
        Self {
            config,
            open: None,
            turn_again: None,
            tidying: Arc::default(),
            tidier: None,
        }
    }

    /// Writes lines, and takes away those that are written: all of them, unless there is an error. None is in two files.
    pub(super) fn write(&mut self, lines: &mut &[u8]) -> io::Result<()> {
        while !lines.is_empty() {
            self.write_some(lines)?;
        }
        Ok(())
    }

    /// Writes the lines that have room in one file, and at least one.
    fn write_some(&mut self, lines: &mut &[u8]) -> io::Result<()> {
        let named = |what: &str, path: &Path, error: io::Error| {
            io::Error::new(
                error.kind(),
                format!("{} cannot be {what}: {error}", path.display()),
            )
        };
        let path = self.config.path.clone();
        if self.is_removed() {
            self.open = None;
        }
        if self.open.is_none() {
            self.open = Some(open(&path).map_err(|error| named("opened", &path, error))?);
            self.tidy();
        }
        let max = self.config.max_bytes;
        let room = |open: &Open| fitting(lines, max.saturating_sub(open.bytes));
        let mut fitting = self.open.as_ref().map_or(0, room);
        if fitting == 0 && self.open.as_ref().is_some_and(|open| open.bytes > 0) {
            self.turn();
            fitting = match self.open {
                // It cannot be renamed.
                Some(_) => lines.len(),
                None => {
                    let new = open(&path).map_err(|error| named("opened", &path, error))?;
                    room(self.open.insert(new))
                }
            };
        }
        if fitting == 0 {
            fitting = first(lines);
        }
        let Some(open) = &mut self.open else {
            return Err(io::Error::other("the file is not open"));
        };
        let (now, later) = lines.split_at(fitting);
        if let Err(error) = open.file.write_all(now) {
            // Half a line would be read as one. A file can be cut on a full disk, too.
            if open.file.set_len(open.bytes).is_err() {
                self.open = None;
            }
            return Err(named("written", &path, error));
        }
        open.bytes += now.len() as u64;
        *lines = later;
        Ok(())
    }

    /// Whether it is old enough for [`Self::turn_if_due`] to do something.
    pub(super) fn is_due(&self) -> bool {
        let old = |open: &Open, age: Duration| {
            open.bytes > 0 && open.began.elapsed().is_ok_and(|since| since >= age)
        };
        matches!((&self.open, self.config.max_age), (Some(open), Some(age)) if old(open, age))
    }

    /// Changes the file for a new one if it is old enough.
    pub(super) fn turn_if_due(&mut self) {
        if self.is_due() {
            self.turn();
        }
    }

    /// Somebody else removed or renamed it.
    fn is_removed(&self) -> bool {
        use std::os::unix::fs::MetadataExt as _;
        let Some(open) = &self.open else {
            return false;
        };
        match (open.file.metadata(), fs::metadata(&self.config.path)) {
            (Ok(own), Ok(there)) => (own.dev(), own.ino()) != (there.dev(), there.ino()),
            _ => true,
        }
    }

    /// Closes the file and gives it the name of an old one.
    fn turn(&mut self) {
        if self.turn_again.is_some_and(|again| Instant::now() < again) {
            return;
        }
        let path = &self.config.path;
        let to = old_name(path, SystemTime::now());
        if let Err(error) = fs::rename(path, &to) {
            // It goes on to grow: nothing is lost for that.
            tracing::error!(%error, path = %path.display(), "the file cannot be renamed, and is written on");
            self.turn_again = Some(Instant::now() + TURN_AGAIN);
            return;
        }
        self.turn_again = None;
        self.open = None;
        self.tidy();
    }

    /// Compresses old files and removes those that are too many, on a thread of its own: both may take long.
    fn tidy(&mut self) {
        let mut state = lock(&self.tidying);
        state.again = true;
        if std::mem::replace(&mut state.runs, true) {
            return;
        }
        drop(state);
        let (config, tidying) = (self.config.clone(), self.tidying.clone());
        let spawned = std::thread::Builder::new()
            .name("dinle-tidy".into())
            .spawn(move || {
                loop {
                    {
                        let mut state = lock(&tidying);
                        state.runs = std::mem::take(&mut state.again);
                        if !state.runs {
                            return;
                        }
                    }
                    if let Err(error) = tidy(&config) {
                        tracing::error!(%error, path = %config.path.display(), "old files cannot be compressed or removed; it is tried again at the next one");
                    }
                }
            });
        match spawned {
            Ok(tidier) => self.tidier = Some(tidier),
            Err(error) => {
                lock(&self.tidying).runs = false;
                tracing::error!(%error, "no thread for compressing old files");
            }
        }
    }
}

/// How many bytes the lines have together that have so much room.
fn fitting(lines: &[u8], room: u64) -> usize {
    let room = usize::try_from(room).unwrap_or(usize::MAX);
    match lines.get(..room) {
        None => lines.len(),
        Some(part) => part
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1),
    }
}

/// How many bytes the first line has.
fn first(lines: &[u8]) -> usize {
    let end = lines.iter().position(|byte| *byte == b'\n');
    end.map_or(lines.len(), |end| end + 1)
}

fn lock(tidying: &Mutex<Tidying>) -> MutexGuard<'_, Tidying> {
    tidying.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Rotated {
    fn drop(&mut self) {
        // Whoever ends the agent finds old files whole.
        if let Some(tidier) = self.tidier.take() {
            _ = tidier.join();
        }
    }
}

/// Opens the file behind its last whole line.
fn open(path: &Path) -> io::Result<Open> {
    if let Some(directory) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(directory)?;
    }
    let file = OpenOptions::new()
        .create(true)
        .mode(FILE_MODE)
        .append(true)
        .read(true)
        .open(path)?;
    let metadata = file.metadata()?;
    let bytes = whole_lines(&file, metadata.len())?;
    if bytes < metadata.len() {
        // An agent was killed while it wrote.
        file.set_len(bytes)?;
    }
    let began = match bytes {
        0 => SystemTime::now(),
        _ => metadata.created().or_else(|_| metadata.modified())?,
    };
    Ok(Open { file, bytes, began })
}

/// How much of a file is whole lines.
fn whole_lines(file: &File, mut len: u64) -> io::Result<u64> {
    use std::os::unix::fs::FileExt as _;
    const CHUNK: u64 = 64 << 10;
    while len > 0 {
        let start = len.saturating_sub(CHUNK);
        let mut chunk = vec![0; (len - start) as usize];
        file.read_exact_at(&mut chunk, start)?;
        if let Some(end) = chunk.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + end as u64 + 1);
        }
        len = start;
    }
    Ok(0)
}

/// Beginning and end of the names of old files.
fn affixes(path: &Path) -> (String, String) {
    let part = |part: Option<&std::ffi::OsStr>| {
        part.map_or(String::new(), |part| part.to_string_lossy().into_owned())
    };
    let extension = part(path.extension());
    let end = if extension.is_empty() {
        extension
    } else {
        format!(".{extension}")
    };
    (format!("{}-", part(path.file_stem())), end)
}

fn old_name(path: &Path, now: SystemTime) -> PathBuf {
    let (start, end) = affixes(path);
    let mut at = now;
    loop {
        let time = humantime::format_rfc3339_millis(at)
            .to_string()
            .replace(['-', ':'], "");
        let name = path.with_file_name(format!("{start}{time}{end}"));
        let compressed = path.with_file_name(format!("{start}{time}{end}.gz"));
        if !name.exists() && !compressed.exists() {
            return name;
        }
        at += Duration::from_millis(1);
    }
}

/// `20260131T235959.123Z`
fn is_time(text: &str) -> bool {
    let pattern = "00000000T000000.000Z";
    text.len() == pattern.len()
        && text
            .bytes()
            .zip(pattern.bytes())
            .all(|(byte, like)| match like {
                b'0' => byte.is_ascii_digit(),
                like => byte == like,
            })
}

/// Files that were closed, the oldest first.
fn old_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (start, end) = affixes(path);
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut old = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(&start)) else {
            continue;
        };
        let plain = rest.trim_end_matches(".part").trim_end_matches(".gz");
        if plain.strip_suffix(&end).is_some_and(is_time) {
            old.push(entry.path());
        }
    }
    old.sort();
    Ok(old)
}

fn tidy(config: &FileSink) -> io::Result<()> {
    let has = |path: &Path, ending: &str| path.to_string_lossy().ends_with(ending);
    let mut old = old_files(&config.path)?;
    // An agent ended while it compressed.
    for part in old.extract_if(.., |path| has(path, ".part")) {
        fs::remove_file(part)?;
    }
    let removed = old.len().saturating_sub(config.keep);
    for path in old.drain(..removed) {
        fs::remove_file(path)?;
    }
    if config.compress == Compression::None {
        return Ok(());
    }
    for path in old.iter().filter(|path| !has(path, ".gz")) {
        compress(path)?;
    }
    Ok(())
}

fn compress(path: &Path) -> io::Result<()> {
    let name = path.to_string_lossy();
    let (part, done) = (
        PathBuf::from(format!("{name}.gz.part")),
        PathBuf::from(format!("{name}.gz")),
    );
    let written = (|| {
        let out = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(FILE_MODE)
            .open(&part)?;
        let mut out = GzEncoder::new(out, Level::fast());
        io::copy(&mut File::open(path)?, &mut out)?;
        out.finish()?.sync_all()?;
        fs::rename(&part, &done)?;
        fs::remove_file(path)
    })();
    if written.is_err() {
        // On a full disk it would stand in the way of events.
        _ = fs::remove_file(&part);
    }
    written
}

#[cfg(test)]
mod tests;
