//! Goal: what comes and goes leaves nothing behind in its process. Method: this test binary starts itself once more, so that
//! its descriptors and tasks are those of one test, and counts them around many cycles.

use std::process::Command;
use std::time::{Duration, Instant};

use outlast::{Client, OrchestrationContext};

use crate::model::world::{World, activities, options, orchestration};
use crate::place::Place;

/// Set in the process that counts.
const COUNTS: &str = "OUTLAST_TEST_COUNTS";
const CYCLES: usize = 5;
/// How long the last of a cycle may take to go: what was being said to a server is waited for.
const GONE_WITHIN: Duration = Duration::from_secs(30);

/// What a cycle ends with.
#[derive(Clone, Copy, Debug)]
enum End {
    Shutdown,
    RuntimeDropped,
    ClientDropped,
    WaitDropped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Used {
    descriptors: usize,
    tasks: usize,
}

fn used() -> Used {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
    Used { descriptors, tasks: tokio::runtime::Handle::current().metrics().num_alive_tasks() }
}

async fn cycle(place: &Place, end: End, n: usize) {
    let id = format!("{end:?}-{n}");
    let provider = place.open().await;
    if let End::ClientDropped | End::WaitDropped = end {
        let client = Client::new(provider);
        client.start_orchestration(&id, "Twice", "a").await.unwrap();
        if let End::WaitDropped = end {
            let wait = client.wait_for_orchestration(&id, Duration::from_secs(60));
            assert!(tokio::time::timeout(Duration::from_millis(50), wait).await.is_err());
        }
        return;
    }
    let code = |ctx: OrchestrationContext, input: String| async move {
        let first = ctx.schedule_activity("Echo", input).await?;
        ctx.schedule_activity_on_session("Echo", first, "s").await
    };
    let world = World::on(provider, activities(), orchestration("Twice", code), options()).await;
    world.client.start_orchestration(&id, "Twice", "a").await.unwrap();
    assert_eq!(world.outcome(&id).await.unwrap(), "a");
    if let End::Shutdown = end {
        world.runtime.clone().shutdown(None).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn runtimes_and_clients_that_come_and_go_leave_no_task_and_no_connection() {
    if std::env::var_os(COUNTS).is_none() {
        let test = "model::resources::runtimes_and_clients_that_come_and_go_leave_no_task_and_no_connection";
        let mut counting = Command::new(std::env::current_exe().unwrap());
        counting.args(["--exact", test, "--nocapture"]).env(COUNTS, "1");
        let output = tokio::task::spawn_blocking(move || counting.output().unwrap()).await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let place = Place::default();
    for end in [End::Shutdown, End::RuntimeDropped, End::ClientDropped, End::WaitDropped] {
        // What the first one makes may last as long as the process.
        cycle(&place, end, 0).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = used();
        for n in 1..=CYCLES {
            cycle(&place, end, n).await;
            // The next one may have the same file, which belongs to the runtime before until that is gone.
            let begun = Instant::now();
            while used().descriptors > before.descriptors || used().tasks > before.tasks {
                assert!(begun.elapsed() < GONE_WITHIN, "{end:?}: {before:?} before, {:?} after {n} cycles", used());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}
