//! File handles (`name_to_handle_at(2)`): they lead to the file they were made of
//! while the kernel knows it, and to an error afterwards; never to another file.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::io::Errno;

use crate::fixture::{Mount, ino};

/// `struct file_handle`, with the most bytes that the kernel makes of one.
#[repr(C)]
#[derive(Clone)]
struct Handle {
    bytes: u32,
    kind: i32,
    data: [u8; 128],
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).expect("of the system")
}

#[allow(unsafe_code, reason = "the call has no safe form")]
fn handle_of(path: &Path) -> Handle {
    let mut handle = Handle { bytes: 128, kind: 0, data: [0; 128] };
    let name = std::ffi::CString::new(path.as_os_str().as_bytes()).expect("no NUL");
    let mut mount = 0_i32;
    // SAFETY: the name ends in NUL, and `handle` has the room that it says.
    let done = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            name.as_ptr(),
            &raw mut handle,
            &raw mut mount,
            0,
        )
    };
    assert_eq!(done, 0, "{}: {}", path.display(), last_error());
    handle
}

#[allow(unsafe_code, reason = "the call has no safe form")]
fn open(mount: &Mount, handle: &Handle, flags: i32) -> Result<File, Errno> {
    let root = File::open(mount.path("")).expect("opened");
    let handle = handle.clone();
    // SAFETY: `handle` is as long as it says; the kernel only reads it.
    let fd = unsafe {
        libc::syscall(libc::SYS_open_by_handle_at, root.as_raw_fd(), &raw const handle, flags)
    };
    if fd < 0 {
        return Err(last_error());
    }
    let fd = i32::try_from(fd).expect("a descriptor");
    // SAFETY: the call has just made the descriptor; it is nobody else's.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn content(file: Result<File, Errno>) -> String {
    let mut text = String::new();
    file.expect("opened").read_to_string(&mut text).expect("read");
    text
}

#[test]
fn a_handle_follows_its_file_through_copy_up_rename_and_swap() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("f", "text"), ("d/g", "below"), ("d/h", "h")]);
    let other = mount.layer("two", &[("new", "new")]);
    mount.mount(&[&layer]);
    let kept =
        [File::open(mount.path("f")), File::open(mount.path("d"))].map(|f| f.expect("opened"));
    let (file, directory) = (handle_of(&mount.path("f")), handle_of(&mount.path("d")));
    assert_eq!(content(open(&mount, &file, libc::O_RDONLY)), "text");
    drop(kept);
    let writer = File::options().append(true).open(mount.path("f"));
    writer.expect("opened").write_all(b"+").expect("written");
    fs::rename(mount.path("f"), mount.path("d/moved")).expect("renamed");
    fs::rename(mount.path("d"), mount.path("e")).expect("renamed");
    mount.swap(&[&other, &layer]);
    assert_eq!(fs::read(mount.path("new")).expect("the new set"), b"new");
    let now = handle_of(&mount.path("e/moved"));
    assert_eq!(content(open(&mount, &now, libc::O_RDONLY)), "text+");
    let found = open(&mount, &directory, libc::O_RDONLY | libc::O_DIRECTORY).expect("opened");
    let by_handle = rustix::fs::fstat(&found).expect("described").st_ino;
    assert_eq!(by_handle, ino(mount.path("e")), "the same directory under its new name");
}

#[test]
fn a_stale_handle_is_an_error_and_never_another_file() {
    let mount = Mount::new();
    let layer = mount.layer("one", &[("f", "text"), ("g", "other"), ("d/h", "h")]);
    mount.mount(&[&layer]);
    let [file, directory] = ["f", "d"].map(|name| handle_of(&mount.path(name)));
    let removed = handle_of(&mount.path("g"));
    fs::remove_file(mount.path("g")).expect("removed");
    // A name that comes again is another file.
    fs::write(mount.path("g"), "another").expect("written");
    assert_eq!(open(&mount, &removed, libc::O_RDONLY).err(), Some(Errno::STALE));
    mount.unmount();
    mount.mount(&[&layer]);
    // Numbers are given anew: those of the last mount mean nothing.
    for name in ["g", "d", "f"] {
        fs::metadata(mount.path(name)).expect("there");
    }
    for handle in [&file, &directory, &removed] {
        let opened = open(&mount, handle, libc::O_RDONLY);
        assert_eq!(opened.err(), Some(Errno::STALE));
    }
    // The kernel forgets what nobody uses, and the file system with it.
    let evicted = handle_of(&mount.path("f"));
    crate::fixture::wait_for("the kernel to forget", || {
        fs::write("/proc/sys/vm/drop_caches", "2").expect("root may");
        open(&mount, &evicted, libc::O_RDONLY).err() == Some(Errno::STALE)
    });
    assert_eq!(content(File::open(mount.path("f")).map_err(|_| Errno::IO)), "text");
}
