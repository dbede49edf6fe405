//! A disk of a test's own.

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::{AsRawFd as _, RawFd},
    path::PathBuf,
};

use tempfile::TempDir;

use crate::agent::temporary;

/// Bytes that it has.
pub const BYTES: u64 = 16 << 20;

/// A loop device. It goes by itself when the last one closes it.
#[derive(Debug)]
pub struct Loop {
    /// Where it is.
    pub path: PathBuf,
    /// What the kernel calls it.
    pub name: String,
    /// The file in which it keeps what is written.
    pub backing: File,
    _device: File,
    _dir: TempDir,
}

impl Loop {
    /// Makes one with sectors of so many bytes. The error says why this machine has none.
    pub fn attach(sector: u32) -> io::Result<Self> {
        // include/uapi/linux/loop.h
        const LOOP_CONFIGURE: libc::c_ulong = 0x4c0a;
        const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;
        const LO_FLAGS_AUTOCLEAR: u32 = 4;
        const LO_NAME_SIZE: usize = 64;
        #[repr(C)]
        struct Info {
            device_inode_rdevice_offset_sizelimit: [u64; 5],
            number_encryption: [u32; 3],
            flags: u32,
            names: [[u8; LO_NAME_SIZE]; 2],
            key: [u8; 32],
            init: [u64; 2],
        }
        #[repr(C)]
        struct Config {
            fd: u32,
            block_size: u32,
            info: Info,
            reserved: [u64; 8],
        }
        let ioctl = |fd: RawFd, request: libc::c_ulong, config: *const Config| {
            // SAFETY: the first request takes no argument, the other one reads a `Config`.
            match unsafe { libc::ioctl(fd, request as _, config) } {
                ..0 => Err(io::Error::last_os_error()),
                done => Ok(done),
            }
        };
        let dir = temporary();
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let backing = options.clone().create(true).open(dir.path().join("disk"))?;
        backing.set_len(BYTES)?;
        let control = options.open("/dev/loop-control")?;
        loop {
            let number = ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE, std::ptr::null())?;
            let name = format!("loop{number}");
            let path = PathBuf::from("/dev").join(&name);
            let device = options.open(&path)?;
            let config = Config {
                fd: backing.as_raw_fd() as u32,
                block_size: sector,
                info: Info {
                    device_inode_rdevice_offset_sizelimit: [0; 5],
                    number_encryption: [0; 3],
                    flags: LO_FLAGS_AUTOCLEAR,
                    names: [[0; LO_NAME_SIZE]; 2],
                    key: [0; 32],
                    init: [0; 2],
                },
                reserved: [0; 8],
            };
            match ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) {
                Ok(_) => {
                    return Ok(Self {
                        path,
                        name,
                        backing,
                        _device: device,
                        _dir: dir,
                    });
                }
                // Somebody else was faster.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(error),
            }
        }
    }
}
