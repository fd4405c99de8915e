//! Goal: every example runs by itself, ends in time and shows the idea that it is there for.
//! Method: the built programs run without arguments; the lines that carry the idea are asserted.
#![expect(clippy::unwrap_used, reason = "tests")]

mod programs;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use programs::program;
use walkdir::WalkDir;

/// Far more than an example takes, so that only one that hangs meets it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs an example to its end; the lines of its standard output.
fn run(example: &str, arguments: &[&Path]) -> Vec<String> {
    let mut command = Command::new(program(example));
    let mut child = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > PATIENCE {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{example} ended with {}: {errors}", output.status);
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn hello_does_the_work_once_and_remembers_the_result() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("hello.sqlite");
    let work = "the activity runs for World";
    let result = "hello-1 returned: Hello, World!";
    assert_eq!(run("hello", &[]), [work, result]);
    assert_eq!(run("hello", &[&file]), [work, result]);
    assert_eq!(run("hello", &[&file]), [result], "the second run has nothing to do");
}

#[test]
fn fan_out_counts_what_the_files_hold() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("inner")).unwrap();
    fs::write(directory.path().join("a.rs"), "abc").unwrap();
    fs::write(directory.path().join("inner/b.rs"), "two words").unwrap();
    fs::write(directory.path().join("note.txt"), "is not counted").unwrap();
    let lines = run("fan_out", &[directory.path()]);
    // SHA-256 of "abc" is the first example of FIPS 180-2.
    assert_eq!(lines[0], "ba7816bf8f01      1 words  a.rs");
    assert!(lines[1].ends_with("      2 words  inner/b.rs"), "{lines:?}");
    assert_eq!(lines[2], "2 files, 3 words");

    let own = WalkDir::new(env!("CARGO_MANIFEST_DIR")).into_iter().map(|entry| entry.unwrap().into_path());
    let own: Vec<_> = own.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect();
    let words: usize = own.iter().map(|path| fs::read_to_string(path).unwrap().split_whitespace().count()).sum();
    assert_eq!(run("fan_out", &[]).pop().unwrap(), format!("{} files, {words} words", own.len()));
}

#[test]
fn approval_shows_the_event_and_the_deadline_winning() {
    let lines = run("approval", &[]);
    let expected =
        ["expense-1 is waiting for approval", "expense-1: a chair approved by Ada", "expense-2: a yacht expired"];
    assert_eq!(lines, expected);
}

#[test]
fn saga_undoes_what_was_done_last_first() {
    let expected = [
        "booked   flight",
        "booked   hotel",
        "no car can be booked",
        "canceled hotel-77",
        "canceled flight-77",
        "trip-1 failed: there is no car left; undone: hotel-77, flight-77",
    ];
    assert_eq!(run("saga", &[]), expected);
}

#[test]
fn retry_shows_success_exhaustion_and_timeout() {
    let lines = run("retry", &[]);
    let attempts = |instance: &str| {
        let key = format!(" with key {instance}/");
        let attempts: Vec<_> = lines.iter().filter(|line| line.contains(&key)).collect();
        let keys: std::collections::BTreeSet<_> = attempts.iter().map(|line| line.rsplit(' ').next()).collect();
        assert_eq!(keys.len(), 1, "all attempts have one key: {attempts:?}");
        attempts.len()
    };
    assert_eq!(attempts("patient"), 3);
    assert_eq!(attempts("impatient"), 2);
    for line in ["patient: ok, answered", "impatient: error, the line is busy", "the slow activity was told to stop"] {
        assert!(lines.iter().any(|l| l == line), "{line} is not in {lines:?}");
    }
    assert_eq!(lines.iter().filter(|line| *line == "timeout: error, timeout: activity timed out").count(), 1);
}

/// One line of the example `sessions`: notebook, hit or miss, worker, words.
struct Note<'a> {
    notebook: &'a str,
    hit: bool,
    worker: &'a str,
    words: usize,
}

fn note(line: &str) -> Note<'_> {
    let (head, words) = line.split_once(": ").unwrap();
    let [notebook, how, "on", worker] = head.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{line}") };
    let words: Vec<_> = words.split(' ').collect();
    assert_eq!(words, ["one", "two", "three", "four", "five"][..words.len()], "no word is lost or doubled: {line}");
    assert!(["hit", "miss"].contains(&how), "{line}");
    Note { notebook, hit: how == "hit", worker, words: words.len() }
}

#[test]
fn sessions_hit_their_cache_and_move_without_loss() {
    let lines = run("sessions", &[]);
    let stop = lines.iter().position(|line| line == "-- left has stopped").unwrap();
    let before: Vec<_> = lines[..stop].iter().map(|line| note(line)).collect();
    let after: Vec<_> = lines[stop + 1..].iter().map(|line| note(line)).collect();
    assert_eq!((before.len(), after.len()), (12, 8), "{lines:?}");
    let home = |notebook: &str| before.iter().find(|note| note.notebook == notebook).unwrap().worker;
    for note in &before {
        assert_eq!(note.worker, home(note.notebook), "a session stays where it is: {lines:?}");
        assert!(!note.hit || note.words > 1, "the first use is a miss: {lines:?}");
    }
    for worker in ["left", "right"] {
        assert!(before.iter().any(|note| note.worker == worker), "{worker} has no session: {lines:?}");
    }
    for note in &after {
        assert_eq!(note.worker, "right", "{lines:?}");
        assert!(note.hit || note.words == 4, "the second word of a visit is a hit: {lines:?}");
        assert!(!note.hit || note.words == 5 || home(note.notebook) == "right", "a moved session: {lines:?}");
    }
    assert!(before.iter().filter(|note| note.words == 3).all(|note| note.hit), "{lines:?}");
    assert!(after.iter().any(|note| !note.hit), "{lines:?}");
}

#[test]
fn tags_send_each_activity_to_its_pool() {
    let expected = [
        "Cut film: cpus (tag none)",
        "Render frame 1: gpus (tag gpu)",
        "Render frame 2: gpus (tag gpu)",
        "Render frame 3: gpus (tag gpu)",
        "Upload film: cpus (tag none)",
    ];
    assert_eq!(run("tags", &[]), expected);
}

#[test]
fn chat_answers_each_message_once_and_in_order() {
    let expected = [
        "me:  drawer",
        "bot: drawer backwards is reward",
        "me:  stressed",
        "bot: stressed backwards is desserts",
        "me:  level",
        "bot: level backwards is level",
        "chat-1 ended: 3 messages answered",
    ];
    assert_eq!(run("chat", &[]), expected);
}

#[test]
fn eternal_keeps_its_state_and_no_growing_history() {
    let lines = run("eternal", &[]);
    assert_eq!(lines[0], "monitor ended: 24 was the highest of 5 rounds");
    assert_eq!(lines[1], "kept as state: highest = Some(24)");
    for round in 1..=4 {
        // Every round that went on has the same events as the first.
        let first = lines[2].strip_prefix("execution 1").unwrap();
        assert!(first.starts_with(": ContinuedAsNew, "), "{lines:?}");
        assert_eq!(lines[1 + round], format!("execution {round}{first}"));
    }
    assert!(lines[6].starts_with("execution 5: Completed, "), "{lines:?}");
    assert_eq!(lines[7..], ["after pruning: [4, 5]"]);
}

#[test]
fn versions_move_on_with_continue_as_new_only() {
    let expected = [
        "ada: nothing sent; next is 1.0.0",
        "ada: january 100 by 1.0.0; next is 1.0.0",
        "-- upgrade: 1.0.0 and 2.0.0",
        "bob: nothing sent; next is 2.0.0",
        "ada: february 100 by 1.0.0; next is 2.0.0",
        "ada: march 120 by 2.0.0; next is 2.0.0",
    ];
    assert_eq!(run("versions", &[]), expected);
}

#[test]
fn axum_service_answers_with_the_right_codes() {
    let lines = run("axum_service", &[]);
    assert!(lines[0].starts_with("serving on http://127.0.0.1:"), "{lines:?}");
    let order = r#"{"id":"order-1","item":"book"}"#;
    let expected = [
        format!("POST /orders {order} -> 201 "),
        format!("POST /orders {order} -> 200 "),
        r#"GET /orders/order-1  -> 200 {"detail":"waits for approval","state":"running"}"#.to_owned(),
        r#"POST /orders/order-1/approve "Ada" -> 202 "#.to_owned(),
        r#"GET /orders/order-1  -> 200 {"detail":"book shipped, approved by Ada","state":"completed"}"#.to_owned(),
    ];
    assert_eq!(lines[1..6], expected);
    assert!(lines[6].starts_with(r#"POST /orders/order-2/approve "Ada" -> 404 {"error":"#), "{lines:?}");
    assert!(lines[7].contains(" -> 400 {\"error\":"), "{lines:?}");
    assert_eq!(lines.len(), 8);
}

/// The service as a process of its own, killed when the test ends.
struct Service {
    process: Child,
    address: String,
}

impl Service {
    fn start(database: &Path) -> Self {
        let mut command = Command::new(program("axum_service"));
        command.args(["--serve", "0", "--database"]).arg(database).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("serving on http://").unwrap().to_owned();
        Self { process, address }
    }

    /// The whole answer, with its head.
    fn request(&self, line: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let length = body.len();
        write!(stream, "{line} HTTP/1.1\r\nHost: it\r\nConnection: close\r\nContent-Type: application/json\r\n")
            .unwrap();
        write!(stream, "Content-Length: {length}\r\n\r\n{body}").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Asks until the order is in this state.
    fn until(&self, order: &str, state: &str) {
        let (line, wanted) = (format!("GET /orders/{order}"), format!("\"state\":\"{state}\""));
        let begun = Instant::now();
        while !self.request(&line, "").contains(&wanted) {
            assert!(begun.elapsed() < PATIENCE, "{order} is not {state}: {}", self.request(&line, ""));
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Errors only when it has ended by itself.
        let _ended = self.process.kill();
        let _ended = self.process.wait();
    }
}

#[test]
fn axum_service_that_is_killed_goes_on_with_its_orders() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("orders.sqlite");
    let service = Service::start(&database);
    let answer = service.request("POST /orders", r#"{"id":"o","item":"lamp"}"#);
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    drop(service);

    let service = Service::start(&database);
    service.until("o", "running");
    let answer = service.request("POST /orders/o/approve", "\"Bob\"");
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
    service.until("o", "completed");
    assert!(service.request("GET /orders/o", "").contains("lamp shipped, approved by Bob"));
}
