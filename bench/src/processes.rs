//! What processes cost and who listens where, from `/proc`.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use anyhow::Context;

/// Clock ticks of `/proc` in a second, the same on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// What `proc_pid_stat(5)` says, as far as we need it.
pub(crate) struct Stat {
    pub(crate) name: String,
    pub(crate) parent: u32,
    /// User and system time of the process.
    own_s: f64,
    /// The same of its children that have ended and their descendants.
    ended_children_s: f64,
}

pub(crate) fn stat(pid: u32) -> anyhow::Result<Stat> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name stands in parentheses and may hold blanks.
    let (head, rest) = line.rsplit_once(')').context("a stat line has a name in parentheses")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).context("a stat line has 52 fields");
    let seconds = |number: usize| anyhow::Ok(field(number)?.parse::<f64>()? / TICKS_PER_SECOND);
    Ok(Stat {
        name: head.split_once('(').map_or(head, |(_, name)| name).to_owned(),
        parent: field(4)?.parse()?,
        own_s: seconds(14)? + seconds(15)?,
        ended_children_s: seconds(16)? + seconds(17)?,
    })
}

/// CPU time of a process so far.
pub(crate) fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    Ok(stat(pid)?.own_s)
}

/// CPU time of a process and its children so far, those that ended included.
pub(crate) fn cpu_seconds_with_children(pid: u32) -> anyhow::Result<f64> {
    let root = stat(pid)?;
    // One that ends meanwhile moves to its parent's sum: better counted a moment late than twice.
    let children = pids().filter_map(|pid| stat(pid).ok()).filter(|stat| stat.parent == pid);
    Ok(root.own_s + root.ended_children_s + children.map(|stat| stat.own_s).sum::<f64>())
}

/// The process that listens on a TCP port of this machine, if it may be known.
pub(crate) fn listener(port: u16) -> Option<u32> {
    let sockets: HashSet<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .into_iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| table.lines().filter_map(|line| listening_socket(line, port)).collect::<Vec<_>>())
        .collect();
    pids().find(|pid| {
        let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        files.flatten().filter_map(|file| fs::read_link(file.path()).ok()).any(|target| is_one_of(&target, &sockets))
    })
}

/// `socket:[INODE]` of a line of `/proc/net/tcp` that listens on the port.
fn listening_socket(line: &str, port: u16) -> Option<String> {
    const LISTEN: &str = "0A";
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (_, local_port) = fields.get(1)?.rsplit_once(':')?;
    let listens = *fields.get(3)? == LISTEN && u16::from_str_radix(local_port, 16) == Ok(port);
    listens.then(|| format!("socket:[{}]", fields[9]))
}

fn is_one_of(target: &Path, sockets: &HashSet<String>) -> bool {
    target.to_str().is_some_and(|target| sockets.contains(target))
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listener_of_a_port_is_found() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(listener(socket.local_addr().unwrap().port()), Some(std::process::id()));
    }

    #[test]
    fn a_process_that_ended_still_counts() {
        let before = cpu_seconds_with_children(std::process::id()).unwrap();
        let burn = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        assert!(std::process::Command::new("sh").args(["-c", burn]).status().unwrap().success());
        assert!(cpu_seconds_with_children(std::process::id()).unwrap() > before);
    }
}
