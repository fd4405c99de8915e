//! What grows with the square of how many things wait can be seen in how often each of them is polled.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use outlast_core::{
    Either2, EventId, EventKind, MessageKind, OrchestrationContext, OrchestrationRegistry, Rules, check_replay,
};

use crate::harness::{Bench, start};

const MANY: usize = 2_000;
const FEW: usize = 100;

/// Counts how often a future is polled.
struct Counted<F> {
    inner: F,
    polls: Arc<AtomicUsize>,
}

impl<F: Future + Unpin> Future for Counted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.polls.fetch_add(1, Ordering::Relaxed);
        Pin::new(&mut self.inner).poll(cx)
    }
}

type Call = Counted<outlast_core::DurableFuture<Result<String, String>>>;

fn calls(ctx: &OrchestrationContext, polls: &Arc<AtomicUsize>, count: usize) -> Vec<Call> {
    let call = |n: usize| Counted { inner: ctx.schedule_activity("A", n.to_string()), polls: Arc::clone(polls) };
    (0..count).map(call).collect()
}

fn job<F, Fut>(code: F) -> OrchestrationRegistry
where
    F: Fn(OrchestrationContext) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<String, String>> + Send + 'static,
{
    OrchestrationRegistry::builder().register("job", move |ctx: OrchestrationContext, _: String| code(ctx)).build()
}

/// Runs code that waits for `go` while all its activities end, the last one first.
fn run(registry: OrchestrationRegistry, made_before: bool) -> Bench {
    let mut bench = Bench::new(registry);
    bench.send(start("job", ""));
    if made_before {
        let EventKind::OrchestrationStarted { rules, limits, .. } = &mut bench.history[0].kind else {
            panic!("a history begins with a start")
        };
        (*rules, *limits) = (Rules::default(), None);
        bench.cold();
    }
    let scheduled = |event: &&outlast_core::HistoryEvent| matches!(event.kind, EventKind::ActivityScheduled { .. });
    let events: Vec<EventId> = bench.history.iter().filter(scheduled).map(|event| event.event_id).collect();
    let results: Vec<_> =
        events.iter().rev().filter_map(|event| bench.result(event.0, Ok(&event.to_string()))).collect();
    bench.turn(results);
    bench.send(MessageKind::Raise { name: "go".to_owned(), data: String::new() });
    bench
}

fn draining(polls: Arc<AtomicUsize>, count: usize) -> OrchestrationRegistry {
    job(move |ctx| {
        let polls = Arc::clone(&polls);
        async move {
            let mut open: FuturesUnordered<Call> = calls(&ctx, &polls, count).into_iter().collect();
            let mut deadline = ctx.schedule_timer(Duration::from_secs(3_600));
            ctx.schedule_wait("go").await;
            let mut seen = Vec::new();
            loop {
                match ctx.select2(open.next(), &mut deadline).await {
                    Either2::First(Some(result)) => seen.push(result?),
                    Either2::First(None) => return Ok(seen.join(" ")),
                    Either2::Second(()) => return Err("late".to_owned()),
                }
            }
        }
    })
}

/// The results in the order in which they came.
fn expected(count: usize) -> String {
    (2..count + 2).rev().map(|event| event.to_string()).collect::<Vec<_>>().join(" ")
}

#[test]
fn draining_many_by_selects_polls_each_a_few_times_in_the_order_of_the_history() {
    let polls = Arc::new(AtomicUsize::new(0));
    let bench = run(draining(Arc::clone(&polls), MANY), false);
    assert_eq!(bench.state.output.as_deref(), Some(expected(MANY).as_str()));
    assert!(polls.load(Ordering::Relaxed) <= 4 * MANY, "{polls:?} polls of {MANY}");
    assert_eq!(check_replay(&bench.handlers, &bench.exported()), Ok(()));
}

#[test]
fn a_history_from_before_is_drained_in_the_same_order() {
    let bench = run(draining(Arc::default(), FEW), true);
    assert_eq!(bench.state.output.as_deref(), Some(expected(FEW).as_str()));
    assert_eq!(check_replay(&bench.handlers, &bench.exported()), Ok(()));
}

#[test]
fn a_select_over_a_join_of_many_polls_each_a_few_times() {
    let polls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&polls);
    let bench = run(
        job(move |ctx| {
            let polls = Arc::clone(&counted);
            async move {
                let mut first = calls(&ctx, &polls, MANY);
                let second = first.split_off(MANY / 2);
                let deadline = ctx.schedule_timer(Duration::from_secs(3_600));
                ctx.schedule_wait("go").await;
                let joined = ctx.join2(ctx.join(first), ctx.join(second));
                match ctx.select2(joined, deadline).await {
                    Either2::First((first, second)) => Ok((first.len() + second.len()).to_string()),
                    Either2::Second(()) => Err("late".to_owned()),
                }
            }
        }),
        false,
    );
    assert_eq!(bench.state.output, Some(MANY.to_string()));
    assert!(polls.load(Ordering::Relaxed) <= 4 * MANY, "{polls:?} polls of {MANY}");
    assert_eq!(check_replay(&bench.handlers, &bench.exported()), Ok(()));
}

#[test]
fn what_a_select_held_back_is_seen_by_a_plain_await_too() {
    let polls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&polls);
    let bench = run(
        job(move |ctx| {
            let polls = Arc::clone(&counted);
            async move {
                let mut open: FuturesUnordered<_> = calls(&ctx, &polls, MANY).into_iter().collect();
                let mut other = ctx.schedule_timer(Duration::from_secs(3_600));
                ctx.schedule_wait("go").await;
                let mut seen = Vec::new();
                while !open.is_empty() {
                    // By turns with a select and without.
                    if let Either2::First(Some(result)) = ctx.select2(open.next(), &mut other).await {
                        seen.push(result?);
                    }
                    if let Some(result) = open.next().await {
                        seen.push(result?);
                    }
                }
                Ok(seen.join(" "))
            }
        }),
        false,
    );
    assert_eq!(bench.state.output.as_deref(), Some(expected(MANY).as_str()));
    assert!(polls.load(Ordering::Relaxed) <= 4 * MANY, "{polls:?} polls of {MANY}");
    assert_eq!(check_replay(&bench.handlers, &bench.exported()), Ok(()));
}

#[test]
fn selects_within_selects_see_the_completions_in_their_order() {
    let bench = run(
        job(|ctx| async move {
            let mut calls = calls(&ctx, &Arc::default(), MANY);
            ctx.schedule_wait("go").await;
            // The last ones have completed first.
            let (mut a, mut b, mut c) = (calls.remove(0), calls.remove(0), calls.pop().ok_or("many")?);
            let mut seen = Vec::new();
            for _ in 0..2 {
                let inner = async {
                    match ctx.select2(&mut a, &mut b).await {
                        Either2::First(result) | Either2::Second(result) => result,
                    }
                };
                match ctx.select2(inner, &mut c).await {
                    Either2::First(result) | Either2::Second(result) => seen.push(result?),
                }
                c = calls.pop().ok_or("many")?;
            }
            let inner = ctx.select2(&mut a, &mut b).await;
            seen.push(format!("{}", inner.is_second()));
            Ok(seen.join(" "))
        }),
        false,
    );
    let (last, before) = (MANY + 1, MANY);
    assert_eq!(bench.state.output, Some(format!("{last} {before} true")));
}

#[test]
fn many_waits_for_one_name_take_many_events() {
    let registry = job(|ctx| async move {
        let waits = (0..3_000).map(|_| ctx.schedule_wait("go")).collect();
        Ok(ctx.join(waits).await.len().to_string())
    });
    let mut bench = Bench::new(registry);
    bench.send(start("job", ""));
    let raised: Vec<_> =
        (0..3_000).map(|n| bench.row(MessageKind::Raise { name: "go".to_owned(), data: n.to_string() })).collect();
    bench.turn(raised);
    assert_eq!(bench.state.output.as_deref(), Some("3000"));
}
