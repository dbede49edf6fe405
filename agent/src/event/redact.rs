//! Events without what only some may see: what programs were given, and which files they touch.

use dinle_ebpf::Kind;
use dinle_proto::v1::{self, event::Detail};

/// Whether events of that kind have arguments or paths. Of the others nothing is ever left out.
pub fn has_arguments(kind: Kind) -> bool {
    match kind {
        Kind::Exec | Kind::FileOpen | Kind::FileDelete => true,
        Kind::Exit
        | Kind::Fork
        | Kind::TcpSession
        | Kind::TcpConnect
        | Kind::TcpReset
        | Kind::TcpRetransmit
        | Kind::BlockIo
        | Kind::BlockLatency
        | Kind::Drop
        | Kind::DropCount => false,
    }
}

/// Leaves out arguments and paths, and says so.
pub fn redact(event: &mut v1::Event) {
    event.redacted = true;
    match &mut event.detail {
        Some(Detail::Exec(exec)) => {
            // In full, so that a new field has to be thought of.
            let v1::Exec {
                filename,
                args,
                args_truncated,
                args_bytes,
                cwd,
                cwd_truncated,
                filename_truncated,
            } = exec;
            for text in [filename, cwd] {
                text.clear();
            }
            args.clear();
            *args_bytes = 0;
            for cut in [args_truncated, cwd_truncated, filename_truncated] {
                *cut = false;
            }
        }
        Some(Detail::FileOpen(open)) => {
            let v1::FileOpen {
                path,
                path_source,
                path_truncated,
                filename,
                filename_truncated,
                flags: _,
                mode: _,
                fd: _,
                error: _,
                inode: _,
                device_major: _,
                device_minor: _,
                io_uring: _,
            } = open;
            for text in [path, filename] {
                text.clear();
            }
            *path_source = v1::PathSource::Unspecified.into();
            for cut in [path_truncated, filename_truncated] {
                *cut = false;
            }
        }
        Some(Detail::FileDelete(delete)) => {
            let v1::FileDelete {
                method: _,
                path,
                path_source,
                path_truncated,
                filename,
                filename_truncated,
                source,
                inode: _,
                device_major: _,
                device_minor: _,
                size_before: _,
                error: _,
                process_args,
                process_args_truncated,
                io_uring: _,
                source_truncated,
            } = delete;
            for text in [path, filename, source] {
                text.clear();
            }
            process_args.clear();
            *path_source = v1::PathSource::Unspecified.into();
            for cut in [
                path_truncated,
                filename_truncated,
                process_args_truncated,
                source_truncated,
            ] {
                *cut = false;
            }
        }
        Some(
            Detail::Exit(_)
            | Detail::Fork(_)
            | Detail::TcpSession(_)
            | Detail::TcpConnect(_)
            | Detail::TcpReset(_)
            | Detail::TcpRetransmit(_)
            | Detail::BlockIo(_)
            | Detail::BlockLatency(_)
            | Detail::Drop(_)
            | Detail::DropCount(_),
        )
        | None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    fn secret() -> String {
        "s3cret".to_owned()
    }

    #[test]
    fn no_argument_and_no_path_is_left() {
        let details = [
            Detail::Exec(v1::Exec {
                filename: secret(),
                args: vec![secret()],
                args_truncated: true,
                args_bytes: 7,
                cwd: secret(),
                cwd_truncated: true,
                filename_truncated: true,
            }),
            Detail::FileOpen(v1::FileOpen {
                path: secret(),
                path_source: v1::PathSource::Joined.into(),
                path_truncated: true,
                filename: secret(),
                filename_truncated: true,
                error: 2,
                ..Default::default()
            }),
            Detail::FileDelete(v1::FileDelete {
                path: secret(),
                filename: secret(),
                source: secret(),
                process_args: vec![secret()],
                error: 2,
                ..Default::default()
            }),
        ];
        for detail in details {
            let mut event = v1::Event {
                process: Some(v1::Process {
                    comm: "cat".to_owned(),
                    ..Default::default()
                }),
                detail: Some(detail),
                ..Default::default()
            };
            redact(&mut event);
            let bytes = event.encode_to_vec();
            let text = String::from_utf8_lossy(&bytes);
            assert!(!text.contains("s3cret"), "{event:?}");
            assert!(event.redacted && text.contains("cat"), "{event:?}");
            match event.detail {
                Some(Detail::Exec(exec)) => assert_eq!(exec, v1::Exec::default()),
                Some(Detail::FileOpen(open)) => assert_eq!(open.error, 2),
                Some(Detail::FileDelete(delete)) => assert_eq!(delete.error, 2),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn every_kind_says_whether_it_has_arguments() {
        let having: Vec<_> = Kind::ALL
            .iter()
            .filter(|kind| has_arguments(**kind))
            .collect();
        assert_eq!(having, [&Kind::Exec, &Kind::FileOpen, &Kind::FileDelete]);
    }
}
