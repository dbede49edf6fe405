use std::{io::Read as _, os::unix::fs::PermissionsExt as _};

use flate2::read::MultiGzDecoder;

use super::*;

fn sink(directory: &Path) -> FileSink {
    FileSink {
        path: directory.join("events.jsonl"),
        raw: false,
        max_bytes: 10,
        max_age: None,
        keep: 100,
        compress: Compression::Gzip,
    }
}

/// Every file's name and text, the old ones first.
fn files(config: &FileSink) -> Vec<(String, String)> {
    let mut paths = old_files(&config.path).expect("a directory");
    paths.extend(config.path.exists().then(|| config.path.clone()));
    let read = |path: &PathBuf| {
        let mut text = String::new();
        let file = File::open(path).expect("a file");
        match path.extension().is_some_and(|extension| extension == "gz") {
            true => MultiGzDecoder::new(file).read_to_string(&mut text),
            false => (&file).read_to_string(&mut text),
        }
        .expect("text");
        (
            path.file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned(),
            text,
        )
    };
    paths.iter().map(read).collect()
}

fn texts(config: &FileSink) -> Vec<String> {
    files(config).into_iter().map(|(_, text)| text).collect()
}

#[test]
fn a_full_file_is_compressed_and_another_begun() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = sink(directory.path());
    let mut file = Rotated::new(config.clone());
    for line in ["one\n", "two\n", "three\n", "four\n"] {
        file.write(&mut line.as_bytes()).expect("room");
    }
    // It waits for what is being compressed.
    drop(file);
    let files = files(&config);
    let texts: Vec<&str> = files.iter().map(|(_, text)| &**text).collect();
    // "three" would have made the first one too long, and "four" the second.
    assert_eq!(texts, ["one\ntwo\n", "three\n", "four\n"], "{files:?}");
    assert!(
        files[0].0.starts_with("events-") && files[0].0.ends_with("Z.jsonl.gz"),
        "{files:?}"
    );
}

#[test]
fn what_comes_at_once_is_in_as_many_files_as_it_takes() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = FileSink {
        compress: Compression::None,
        ..sink(directory.path())
    };
    let mut file = Rotated::new(config.clone());
    file.write(&mut b"1\n".as_slice()).expect("room");
    // The first file is filled up to its last byte, and none is longer, but for a line that is.
    let lines = "two\nfour\nfive\nlonger than any\nsix\nsevens\n8\n";
    file.write(&mut lines.as_bytes()).expect("room");
    file.write(&mut b"9\n".as_slice()).expect("room");
    drop(file);
    let expected = [
        "1\ntwo\n",
        "four\nfive\n",
        "longer than any\n",
        "six\n",
        "sevens\n8\n",
        "9\n",
    ];
    assert_eq!(texts(&config), expected);
}

#[test]
fn the_oldest_go_and_others_files_stay() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = FileSink {
        keep: 2,
        compress: Compression::None,
        ..sink(directory.path())
    };
    let foreign = directory.path().join("events-mine.jsonl");
    fs::write(&foreign, "mine").expect("a file");
    let mut file = Rotated::new(config.clone());
    for line in [
        "aaaaaaaa\n",
        "bbbbbbbb\n",
        "cccccccc\n",
        "dddddddd\n",
        "eeeeeeee\n",
    ] {
        file.write(&mut line.as_bytes()).expect("room");
    }
    drop(file);
    assert_eq!(texts(&config), ["cccccccc\n", "dddddddd\n", "eeeeeeee\n"]);
    assert!(foreign.exists());
}

#[test]
fn what_a_killed_agent_left_is_mended() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = sink(directory.path());
    fs::write(&config.path, "whole\nhal").expect("a file");
    let old = directory.path().join("events-20260101T000000.000Z.jsonl");
    fs::write(&old, "old\n").expect("a file");
    fs::write(
        directory
            .path()
            .join("events-20260101T000000.000Z.jsonl.gz.part"),
        "x",
    )
    .expect("a file");
    let mut file = Rotated::new(config.clone());
    file.write(&mut b"new\n".as_slice()).expect("room");
    drop(file);
    let files = files(&config);
    let names: Vec<&str> = files.iter().map(|(name, _)| &**name).collect();
    assert_eq!(
        names,
        ["events-20260101T000000.000Z.jsonl.gz", "events.jsonl"]
    );
    assert_eq!((&*files[0].1, &*files[1].1), ("old\n", "whole\nnew\n"));
}

#[test]
fn a_file_that_somebody_took_away_is_made_anew() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = sink(directory.path());
    let mut file = Rotated::new(config.clone());
    file.write(&mut b"one\n".as_slice()).expect("room");
    let moved = directory.path().join("elsewhere");
    fs::rename(&config.path, &moved).expect("renamed");
    file.write(&mut b"two\n".as_slice()).expect("room");
    assert_eq!(fs::read_to_string(&moved).expect("a file"), "one\n");
    assert_eq!(texts(&config), ["two\n"]);
}

#[test]
fn an_old_file_is_changed_though_nothing_comes() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = FileSink {
        max_age: Some(Duration::ZERO),
        compress: Compression::None,
        ..sink(directory.path())
    };
    let mut file = Rotated::new(config.clone());
    assert!(!file.is_due());
    file.write(&mut b"one\n".as_slice()).expect("room");
    assert!(file.is_due());
    file.turn_if_due();
    assert!(!file.is_due() && !config.path.exists());
    drop(file);
    assert_eq!(texts(&config), ["one\n"]);
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("file");
    fs::write(&file, "").expect("a file");
    let error = Rotated::new(sink(&file))
        .write(&mut b"x\n".as_slice())
        .expect_err("no directory");
    assert!(
        error
            .to_string()
            .contains("file/events.jsonl cannot be opened"),
        "{error}"
    );
}

#[test]
fn files_are_not_for_everybody() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = sink(&directory.path().join("new"));
    let mut file = Rotated::new(config.clone());
    file.write(&mut b"aaaaaaaa\n".as_slice()).expect("room");
    file.write(&mut b"bbbbbbbb\n".as_slice()).expect("room");
    drop(file);
    let mode = |path: &Path| {
        let metadata = fs::metadata(path).expect("it is there");
        metadata.permissions().mode() & 0o777
    };
    let mut all = old_files(&config.path).expect("a directory");
    assert_eq!(all.len(), 1);
    all.push(config.path.clone());
    for path in &all {
        assert_eq!(mode(path) & !FILE_MODE, 0, "{}", path.display());
    }
    let parent = config.path.parent().expect("a directory");
    assert_eq!(mode(parent) & !DIRECTORY_MODE, 0);
}

#[test]
fn a_file_that_cannot_be_renamed_is_written_on_and_that_is_tried_again_later() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = FileSink {
        // With a time in it, it is too long.
        path: directory.path().join("x".repeat(250)),
        ..sink(directory.path())
    };
    let mut file = Rotated::new(config.clone());
    file.write(&mut b"aaaaaaaa\n".as_slice()).expect("room");
    file.write(&mut b"bbbbbbbb\n".as_slice()).expect("room");
    let again = file.turn_again;
    assert!(again.is_some());
    file.write(&mut b"cccccccc\n".as_slice()).expect("room");
    assert_eq!(file.turn_again, again);
    assert_eq!(texts(&config), ["aaaaaaaa\nbbbbbbbb\ncccccccc\n"]);
}
