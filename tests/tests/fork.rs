//! A fork has none of its parent's threads: whatever would wait for one is refused there.
#![cfg(unix)]

use perjoule::cpu::team::Team;
use perjoule::{Device, Error, Tensor, ops};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Runs `body` in a fork of this process, and fails when it is false, dies or hangs.
#[track_caller]
fn forked(body: impl FnOnce() -> bool) {
    // SAFETY: the child only runs `body`, which takes no lock that another thread of the parent may hold (glibc keeps its allocator
    // usable in a fork), and ends without running anything of the parent's.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let right = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(false);
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(i32::from(!right)) };
    }
    assert!(child > 0, "fork failed");
    let start = Instant::now();
    let mut status = 0;
    // SAFETY: the child made above, and a place for its status.
    while unsafe { libc::waitpid(child, &mut status, libc::WNOHANG) } == 0 {
        if start.elapsed() > Duration::from_secs(20) {
            // SAFETY: the child made above, which has not been waited for.
            unsafe {
                libc::kill(child, libc::SIGKILL);
                libc::waitpid(child, &mut status, 0);
            }
            panic!("the fork hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(status, 0, "the fork found something else");
}

fn lost<T>(result: Result<T, Error>) -> bool {
    matches!(result, Err(Error::Lost { .. }))
}

#[test]
fn a_fork_has_lost_the_device() {
    let device: Device = perjoule::open_with_threads("cpu", Some(2)).unwrap();
    let x = Tensor::from_slice(&device, &[1.0f32; 4], [4]).unwrap();
    // another thread holds the default stream, for ever as the fork sees it
    let (held, is_held) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let other = device.clone();
    let holder = std::thread::spawn(move || {
        let _stream = other.default_stream().unwrap();
        held.send(()).unwrap();
        let _ = released.recv();
    });
    is_held.recv().unwrap();
    forked(|| lost(device.default_stream()) && lost(ops::add(&x, &x)) && lost(x.to_vec::<f32>()));
    drop(release);
    holder.join().unwrap();
    assert_eq!(ops::add(&x, &x).unwrap().to_vec::<f32>().unwrap(), [2.0; 4]);
}

#[test]
fn a_fork_has_no_team() {
    let team = Team::new(2).unwrap();
    team.lock().unwrap().run(&|lane| lane.barrier()).unwrap();
    let (held, is_held) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let team = &team;
        forked(|| lost(team.lock()) && team.is_forked());
        scope.spawn(move || {
            let _exclusive = team.lock().unwrap();
            held.send(()).unwrap();
            let _ = released.recv();
        });
        is_held.recv().unwrap();
        forked(|| lost(team.lock()));
        drop(release);
    });
    team.lock().unwrap().run(&|lane| lane.barrier()).unwrap();
}
