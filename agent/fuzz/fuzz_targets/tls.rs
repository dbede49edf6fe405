//! PEM files as the listener loads them, here all in one; and, where it is no PEM, a client's certificate in DER.
#![no_main]

use std::{fs, path::PathBuf, sync::LazyLock};

use dinle::listen::{Files, State, Subject};
use dinle_fuzz::assert_is_a_sentence;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;
use tokio::runtime::Builder;

static FILE: LazyLock<(TempDir, PathBuf)> = LazyLock::new(|| {
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("all.pem");
    (directory, file)
});

fuzz_target!(|content: &[u8]| {
    subject(content);
    if content.contains(&b'-') {
        files(content);
    }
});

/// Who is let in by a certificate has a name.
fn subject(der: &[u8]) {
    match Subject::of(der) {
        Ok(Subject { user, groups }) => {
            assert!(!user.is_empty() && groups.iter().all(|group| !group.is_empty()));
        }
        Err(error) => assert_is_a_sentence(&error),
    }
}

fn files(content: &[u8]) {
    let (_, file) = &*FILE;
    fs::write(file, content).expect("a file");
    // It looks at the files again and again, until its runtime ends.
    let runtime = Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let _entered = runtime.enter();
    let open = |client_ca| {
        let files = Files {
            certificate: file.clone(),
            key: file.clone(),
            client_ca,
            client_may_show_none: false,
        };
        let opened = State::open(files).map_err(|error| error.to_string());
        if let Err(told) = &opened {
            assert_is_a_sentence(told);
            assert!(told.contains("all.pem"), "{told}");
        }
        opened
    };
    let (alone, asking) = (open(None), open(Some(file.clone())));
    match (&alone, &asking) {
        // The same pair, and the authority may be wrong.
        (Ok(one), Ok(other)) => assert_eq!(one.expires(), other.expires()),
        (Ok(_), Err(_)) => {}
        (Err(one), other) => assert_eq!(Some(one), other.as_ref().err()),
    }
}
