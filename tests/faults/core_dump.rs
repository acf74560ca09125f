//! What a process of ours has in memory does not get out: no core file, no look by others of the same user.

use crate::support::leaks::{cores, usual_core};
use crate::support::until;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, geteuid};
use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A process of ours that has a secret in memory and waits for more; cores are allowed to it, in `dir`. It is not root's,
/// also where the tests are.
fn waiting(program: &Path, dir: &Path) -> Child {
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -c $(ulimit -H -c) && exec \"$@\"", "sh"])
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    if geteuid().is_root() {
        let to = ["--reuid=65534", "--regid=65534", "--clear-groups"];
        command.arg("setpriv").args(to);
    }
    command.arg(program).args(["platforms", "hash-password"]);
    let mut child = command.spawn().unwrap();
    let stdin = child.stdin.as_mut().unwrap();
    stdin.write_all(b"the-first-half-of-a-password").unwrap();
    child
}

/// Whether it is our program already, and nobody but root may look into it.
fn is_shut(pid: u32) -> bool {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let owner = std::fs::metadata(format!("/proc/{pid}/environ")).map(|found| found.uid());
    name.trim() == "chandler" && owner.is_ok_and(|uid| uid == 0)
}

#[tokio::test]
async fn no_core_file_is_left_and_nobody_else_may_look() {
    let dir = tempfile::tempdir().unwrap();
    // Somewhere everybody may get at, with the room of a core file.
    let program = dir.path().join("chandler");
    std::fs::copy(env!("CARGO_BIN_EXE_chandler"), &program).unwrap();
    let crash = dir.path().join("crash");
    std::fs::create_dir(&crash).unwrap();
    for path in [dir.path(), &program] {
        std::fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    std::fs::set_permissions(&crash, Permissions::from_mode(0o777)).unwrap();
    let own = usual_core(&crash);
    println!("{} core files of another program", own.len());
    own.iter()
        .for_each(|name| std::fs::remove_file(crash.join(name)).unwrap());

    // Not SIGQUIT: whoever starts the tests in the background makes them ignore it.
    for signal in [Signal::SIGABRT, Signal::SIGILL] {
        let mut child = waiting(&program, &crash);
        let pid = child.id();
        until(
            "the process is its own master",
            Duration::from_secs(20),
            || async { is_shut(pid).then_some(()) },
        )
        .await;
        assert!(
            child.try_wait().unwrap().is_none(),
            "it waits for the rest of the password"
        );
        nix::sys::signal::kill(Pid::from_raw(pid as i32), signal).unwrap();
        let ended = child.wait().unwrap();
        assert_eq!(ended.signal(), Some(signal as i32));
        assert!(!ended.core_dumped(), "{signal}");
        assert_eq!(cores(&crash), Vec::<String>::new(), "{signal}");
    }
}
