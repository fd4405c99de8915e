//! The orchestrations that the scripts run.

use std::time::Duration;

use outlast_core::{Either2, OrchestrationContext, OrchestrationRegistry};

pub(crate) fn registry() -> OrchestrationRegistry {
    OrchestrationRegistry::builder()
        .register("chain", |ctx: OrchestrationContext, input: String| async move {
            let first = ctx.schedule_activity("A", input).await?;
            ctx.schedule_activity("B", first).await
        })
        .register("approval", |ctx: OrchestrationContext, _: String| async move {
            let timeout = ctx.schedule_timer(Duration::from_secs(60));
            let approval = ctx.schedule_wait("approve");
            match ctx.select2(timeout, approval).await {
                Either2::First(()) => Err("too late".to_owned()),
                Either2::Second(data) => Ok(data),
            }
        })
        .register("forgetful", |ctx: OrchestrationContext, _: String| async move {
            let _unawaited = ctx.schedule_activity("A", "x");
            ctx.schedule_orchestration("other", "detached", "y");
            Ok("done".to_owned())
        })
        .register("dropping", |ctx: OrchestrationContext, input: String| async move {
            drop(ctx.schedule_sub_orchestration("child", input));
            ctx.schedule_timer(Duration::from_secs(1)).await;
            Ok("done".to_owned())
        })
        .register("careless", |ctx: OrchestrationContext, input: String| async move {
            drop(ctx.schedule_sub_orchestration("child", input));
            Ok("done".to_owned())
        })
        .register("fickle", |ctx: OrchestrationContext, input: String| async move {
            drop(ctx.schedule_activity("A", input));
            drop(ctx.schedule_timer(Duration::from_secs(1)));
            drop(ctx.schedule_wait("go"));
            drop(ctx.dequeue_event("words"));
            Ok(ctx.schedule_wait("go").await)
        })
        .register("parent", |ctx: OrchestrationContext, input: String| async move {
            ctx.schedule_sub_orchestration("child", input).await
        })
        .register("counter", |ctx: OrchestrationContext, input: String| async move {
            let count: u32 = input.parse().map_err(|_| "not a number".to_owned())?;
            ctx.set_kv_value("count", input);
            let word = ctx.dequeue_event("words").await;
            if word == "stop" {
                return Ok(format!("{count} {:?}", ctx.get_kv_value("count")));
            }
            ctx.continue_as_new((count + 1).to_string()).await
        })
        .register("racing", |ctx: OrchestrationContext, _: String| async move {
            let first = ctx.schedule_activity("A", "");
            let second = ctx.schedule_activity("B", "");
            ctx.schedule_wait("go").await;
            match ctx.select2(first, second).await {
                Either2::First(a) => a.map(|a| format!("first {a}")),
                Either2::Second(b) => b.map(|b| format!("second {b}")),
            }
        })
        .register("curious", |ctx: OrchestrationContext, input: String| async move {
            Ok(format!("{:?}", ctx.get_kv_value_from_instance(input, "colour").await?))
        })
        .register("panics", |ctx: OrchestrationContext, _: String| async move {
            ctx.schedule_timer(Duration::from_secs(1)).await;
            panic!("boom")
        })
        .register("sleeps", |_: OrchestrationContext, _: String| std::future::pending())
        .register("greedy", |ctx: OrchestrationContext, _: String| async move {
            for key in 0..200 {
                ctx.set_kv_value(format!("k{key}"), "v");
            }
            Ok("kept".to_owned())
        })
        .build()
}
