//! Start, exec, suspend, resume, stop, and what is left when something dies.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use strata_machine::{Forward, MachineError, Network, RunState, StartRequest};

use crate::fleet::{DEADLINE, Fleet, eventually, start_request, va, words};

fn state(fleet: &Fleet, name: &str) -> RunState {
    let machines = fleet.machines();
    let record = machines.record(&va(name)).expect("a record");
    machines.run_state(&record).expect("a state")
}

fn kill(pid: u32) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("not zero");
    rustix::process::kill_process(pid, Signal::KILL).expect("it is alive");
}

#[test]
fn a_va_lives_and_ends() {
    let fleet = Fleet::new();
    fleet.provision("web");
    assert_eq!(state(&fleet, "web"), RunState::Stopped);
    fleet.start("web", &[]);
    assert_eq!(state(&fleet, "web"), RunState::Running);
    assert_eq!(fleet.sh_stdout("web", "hostname"), "web");
    assert_eq!(fleet.sh_stdout("web", "readlink /proc/1/exe"), "/memfd:strata-init (deleted)");
    fleet.sh_stdout("web", "echo kept >/etc/motd");
    fleet.machines().stop(&va("web"), DEADLINE).expect("stopped");
    assert_eq!(state(&fleet, "web"), RunState::Stopped);
    assert_eq!(fleet.leftovers(), Vec::<String>::new());
    fleet.machines().stop(&va("web"), DEADLINE).expect("stopping twice is no error");
    fleet.start("web", &[]);
    assert_eq!(fleet.sh_stdout("web", "cat /etc/motd"), "kept");
}

#[test]
fn nothing_of_the_host_is_seen() {
    let fleet = Fleet::new();
    fleet.provision("web");
    fleet.start("web", &[]);
    let mounts = fleet.sh_stdout("web", "cat /proc/mounts");
    let allowed = ["strata", "proc", "sysfs", "tmpfs", "devpts", "mqueue"];
    for line in mounts.lines() {
        assert!(allowed.contains(&line.split(' ').next().expect("a source")), "{line}");
    }
    assert_eq!(fleet.sh_stdout("web", "ls /proc/1/fd | cat | tail -n 1"), "2");
    assert_eq!(fleet.sh_stdout("web", "ls -d /proc/[0-9]* | cat").lines().next(), Some("/proc/1"));
    let devices = fleet.sh_stdout("web", "ls /dev");
    let expected = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero";
    assert_eq!(devices.split_whitespace().collect::<Vec<_>>().join(" "), expected);
    for forbidden in [
        "mknod /tmp/disk b 254 0",
        "echo host >/proc/sys/kernel/hostname",
        "echo x >/proc/sysrq-trigger",
        "mkdir /sys/kernel/x",
        "echo x >/proc/1/exe",
        "hostname other",
    ] {
        assert!(!fleet.sh("web", forbidden).status.success(), "{forbidden}");
    }
    // A descriptor that the caller has open does not come along.
    let shown = fleet.sh_stdout("web", "ls /proc/self/fd");
    assert_eq!(shown.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
}

#[test]
fn exec_passes_codes_and_streams() {
    let fleet = Fleet::new();
    fleet.provision("web");
    fleet.start("web", &[]);
    assert_eq!(fleet.sh("web", "exit 42").status.code(), Some(42));
    assert_eq!(fleet.sh("web", "kill -KILL $$").status.code(), Some(128 + 9));
    let machines = fleet.machines();
    let code = |command: &[&str]| {
        let mut command =
            machines.exec(&va("web"), &words(command), &fleet.programs()).expect("running");
        command.command().output().expect("runs").status.code()
    };
    assert_eq!(code(&["no-such-program"]), Some(127));
    assert_eq!(code(&["/etc"]), Some(126));
    let output = fleet.sh("web", "echo out; echo err >&2");
    assert_eq!((output.stdout, output.stderr), (b"out\n".to_vec(), b"err\n".to_vec()));
}

#[test]
fn a_suspended_va_does_nothing() {
    let fleet = Fleet::new();
    fleet.provision("web");
    fleet.start(
        "web",
        &["sh", "-c", "i=0; while :; do i=$((i+1)); echo $i >/run/lock/n; echo $i >/n; done"],
    );
    let counter = fleet.machines().directory(&va("web")).join("private/upper/n");
    eventually("the counter counts", || counter.exists());
    let machines = fleet.machines();
    machines.suspend(&va("web"), DEADLINE).expect("suspended");
    assert_eq!(state(&fleet, "web"), RunState::Suspended);
    let observed = machines.observe(&machines.record(&va("web")).expect("there")).expect("seen");
    assert!(observed.daemon_frozen);
    assert!(!observed.daemon.is_empty());
    let before = fs::metadata(&counter).expect("there");
    // A busy CPU for a while: whoever could run would have.
    let until = Instant::now() + Duration::from_millis(200);
    while Instant::now() < until {
        std::hint::spin_loop();
    }
    let after = fs::metadata(&counter).expect("there");
    assert_eq!(
        (before.mtime(), before.mtime_nsec(), before.ctime_nsec()),
        (after.mtime(), after.mtime_nsec(), after.ctime_nsec()),
    );
    machines.suspend(&va("web"), DEADLINE).expect("suspending twice is no error");
    assert!(matches!(
        machines.exec(&va("web"), &words(&["ls"]), &fleet.programs()),
        Err(MachineError::Suspended(_))
    ));
    machines.resume(&va("web"), DEADLINE, &fleet.programs()).expect("resumed");
    assert_eq!(state(&fleet, "web"), RunState::Running);
    eventually("the counter goes on", || {
        fs::metadata(&counter).is_ok_and(|now| now.ctime_nsec() != after.ctime_nsec())
    });
    machines.resume(&va("web"), DEADLINE, &fleet.programs()).expect("resuming twice is no error");
    machines.suspend(&va("web"), DEADLINE).expect("suspended");
    machines.stop(&va("web"), DEADLINE).expect("a suspended VA can be stopped");
    assert_eq!(fleet.leftovers(), Vec::<String>::new());
}

#[test]
fn orphans_are_reaped() {
    let fleet = Fleet::new();
    fleet.provision("web");
    fleet.start("web", &[]);
    for _ in 0..20 {
        fleet.sh_stdout("web", "(sleep 0.01 & sleep 0.01 &) ; :");
    }
    let machines = fleet.machines();
    let record = machines.record(&va("web")).expect("there");
    eventually("only PID 1 is left", || {
        machines.observe(&record).expect("seen").processes.len() == 1
    });
    let init = machines.observe(&record).expect("seen").init.expect("PID 1");
    let children = format!("/proc/{init}/task/{init}/children");
    eventually("no zombie is left", || {
        fs::read_to_string(&children).is_ok_and(|list| list.trim().is_empty())
    });
}

#[test]
fn the_command_is_the_appliance() {
    let fleet = Fleet::new();
    fleet.provision("web");
    let script = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done";
    fleet.start("web", &["sh", "-c", script]);
    eventually("it is up", || fleet.console("web").contains("up"));
    fleet.machines().stop(&va("web"), DEADLINE).expect("stopped");
    assert_eq!(fleet.console("web"), "up\nbye\n");
    // One that ends takes the VA with it; its leftovers do not hinder a start.
    fleet.start("web", &["sh", "-c", "sleep 100 & exit 3"]);
    eventually("the VA has ended", || state(&fleet, "web") == RunState::Stopped);
    assert!(fleet.console("web").contains("ended by itself: exit status: 3"));
    fleet.start("web", &[]);
    assert_eq!(state(&fleet, "web"), RunState::Running);
}

#[test]
fn one_that_will_not_end_is_killed() {
    let fleet = Fleet::new();
    fleet.provision("web");
    fleet.start("web", &["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.01; done"]);
    eventually("it is up", || fleet.console("web").contains("up"));
    let began = Instant::now();
    fleet.machines().stop(&va("web"), Duration::from_millis(200)).expect("stopped");
    assert!(began.elapsed() < Duration::from_secs(10));
    assert_eq!(fleet.leftovers(), Vec::<String>::new());
}

#[test]
fn whatever_is_killed_stop_cleans_up_and_start_works() {
    let fleet = Fleet::new();
    fleet.provision("web");
    let machines = fleet.machines();
    let record = machines.record(&va("web")).expect("there");
    for suspended in [false, true] {
        for victim in ["init", "daemon", "both"] {
            fleet.start("web", &["sh", "-c", "while :; do echo >/x; done"]);
            if suspended {
                machines.suspend(&va("web"), DEADLINE).expect("suspended");
            }
            let observed = machines.observe(&record).expect("seen");
            if victim != "daemon" {
                kill(observed.init.expect("PID 1"));
            }
            if victim != "init" {
                observed.daemon.iter().for_each(|pid| kill(*pid));
            }
            machines.stop(&va("web"), DEADLINE).expect(victim);
            assert_eq!(fleet.leftovers(), Vec::<String>::new(), "{victim}");
            assert_eq!(state(&fleet, "web"), RunState::Stopped);
        }
    }
}

#[test]
fn of_two_starts_one_is_refused() {
    let fleet = Fleet::new();
    fleet.provision("web");
    fleet.programs();
    let results: Vec<_> = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let request = start_request(Vec::new());
                    fleet.machines().start(&va("web"), &request, &fleet.programs())
                })
            })
            .collect();
        starts.into_iter().map(|start| start.join().expect("no panic")).collect()
    });
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
    let refused = results.into_iter().find_map(Result::err).expect("one is refused");
    assert!(matches!(refused, MachineError::Running(_)), "{refused}");
}

#[test]
fn a_failed_start_leaves_nothing() {
    let fleet = Fleet::new();
    fleet.provision("web");
    let machines = fleet.machines();
    let mac = machines.record(&va("web")).expect("there").mac;
    let programs = fleet.programs();
    let start = |command: &[&str]| {
        let request = start_request(words(command));
        machines.start(&va("web"), &request, &programs).expect_err("refused").to_string()
    };
    let refusal = fleet.fake().join(format!("refuse-{mac}"));
    fs::write(&refusal, "").expect("written");
    assert!(start(&[]).contains("the layer main/x 1 is damaged"));
    assert_eq!(fleet.leftovers(), Vec::<String>::new());
    fs::remove_file(&refusal).expect("removed");
    assert!(start(&["no-such-command"]).contains("cannot run \"no-such-command\""));
    assert_eq!(fleet.leftovers(), Vec::<String>::new());
    assert!(!Path::new(&machines.directory(&va("web")).join("run")).exists());
}

#[test]
fn a_private_network_has_a_loopback_interface_and_nothing_else() {
    let fleet = Fleet::new();
    fleet.provision("web");
    let request =
        StartRequest { network: Network::Private, ..start_request(words(&["sleep", "1000"])) };
    fleet.machines().start(&va("web"), &request, &fleet.programs()).expect("started");
    let interfaces = fleet.sh_stdout("web", "ls /proc/1/net/dev_snmp6 /sys/class/net");
    assert!(interfaces.contains("lo"), "{interfaces}");
    let network = fleet.sh_stdout("web", "readlink /proc/1/ns/net");
    assert!(network.starts_with("net:[") && network != own_network(), "{network}");
    // What is executed later is in it too, and the interface is up.
    assert_eq!(fleet.sh_stdout("web", "readlink /proc/self/ns/net"), network);
    let routes = fleet.sh_stdout("web", "cat /proc/self/net/fib_trie");
    assert!(routes.contains("127.0.0.1"), "{routes}");
    assert_eq!(fleet.sh_stdout("web", "cat /proc/self/net/route").lines().count(), 1);
    fleet.machines().stop(&va("web"), DEADLINE).expect("stopped");

    fleet.start("web", &["sleep", "1000"]);
    assert_eq!(fleet.sh_stdout("web", "readlink /proc/self/ns/net"), own_network());
    fleet.machines().stop(&va("web"), DEADLINE).expect("stopped");
}

#[test]
fn only_a_machine_has_ports_of_its_own() {
    let fleet = Fleet::new();
    fleet.provision("web");
    let forwards = vec![Forward { host: 8080, machine: 80 }];
    let request = StartRequest { forwards, ..start_request(words(&["sleep", "1000"])) };
    let refused = fleet.machines().start(&va("web"), &request, &fleet.programs());
    assert!(matches!(refused, Err(MachineError::NoForwards(_))), "{refused:?}");
    assert_eq!(fleet.leftovers(), Vec::<String>::new());
}

fn own_network() -> String {
    let link = fs::read_link("/proc/self/ns/net").expect("a network namespace");
    link.display().to_string()
}

#[test]
fn a_va_that_takes_more_memory_than_it_may_is_ended_alone() {
    let fleet = Fleet::new();
    fleet.provision("web");
    let request =
        StartRequest { memory_bytes: Some(64 << 20), ..start_request(words(&["sleep", "1000"])) };
    fleet.machines().start(&va("web"), &request, &fleet.programs()).expect("started");
    let small = fleet.sh("web", "echo fits");
    assert_eq!(small.stdout, b"fits\n", "{small:?}");
    // 16 bytes doubled 24 times.
    let large = fleet.sh(
        "web",
        "v=0123456789abcdef; i=0; while [ $i -lt 24 ]; do v=$v$v; i=$((i+1)); done; echo fits",
    );
    assert!(!large.status.success(), "{large:?}");
    assert_eq!(fleet.sh_stdout("web", "echo lives"), "lives");
    fleet.machines().stop(&va("web"), DEADLINE).expect("stopped");
}
