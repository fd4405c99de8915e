//! Typed and plain calls meet: a text is written as it is, and read as JSON first and else as it is.

use outlast::{ActivityContext, ActivityRegistry, ClientError, OrchestrationContext, OrchestrationRegistry};
use serde::{Deserialize, Serialize};

use crate::model::world::{SOON, World, activities, orchestration};

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
struct Name(String);

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
struct Order {
    item: String,
    count: u32,
}

fn greeter() -> (outlast::ActivityRegistryBuilder, outlast::OrchestrationRegistryBuilder) {
    let activities = ActivityRegistry::builder()
        .register_typed("Greet", |_: ActivityContext, name: String| async move { Ok(format!("Hello, {name}!")) })
        .register("Plain", |_: ActivityContext, input: String| async move { Ok(input) });
    let orchestrations = OrchestrationRegistry::builder()
        .register_typed("Typed", |ctx: OrchestrationContext, name: String| async move {
            ctx.schedule_activity_typed::<String, String>("Greet", &name).await
        })
        .register("Plain", |ctx: OrchestrationContext, name: String| async move {
            ctx.schedule_activity("Greet", name).await
        })
        .register("TypedChild", |ctx: OrchestrationContext, name: String| async move {
            let typed: String = ctx.schedule_sub_orchestration_typed("Plain", &name).await?;
            let plain = ctx.schedule_sub_orchestration("Typed", name).await?;
            Ok(format!("{typed} {plain}"))
        })
        .register_typed("TextOfPlain", |ctx: OrchestrationContext, name: String| async move {
            ctx.schedule_activity_typed::<_, String>("Plain", &name).await
        });
    (activities, orchestrations)
}

#[tokio::test]
async fn a_typed_orchestration_takes_a_plain_text_and_gives_one() {
    let (activities, orchestrations) = greeter();
    let world = World::start(activities, orchestrations).await;
    assert_eq!(world.run("Typed", "Bob").await.unwrap(), "Hello, Bob!");
    assert_eq!(world.run("Plain", "Ann").await.unwrap(), "Hello, Ann!");
    assert_eq!(world.run("TypedChild", "Eve").await.unwrap(), "Hello, Eve! Hello, Eve!");
    let read: String = world.client.wait_for_orchestration_typed("Plain-1", SOON).await.unwrap();
    assert_eq!(read, "Hello, Ann!", "a plain output is a typed text");
    // JSON of a program that quotes its texts itself.
    world.client.start_orchestration("quoted", "Typed", "\"Bob\"").await.unwrap();
    assert_eq!(world.outcome("quoted").await.unwrap(), "Hello, Bob!");
}

#[tokio::test]
async fn texts_that_are_json_by_chance_come_back_as_they_were() {
    let (activities, orchestrations) = greeter();
    let world = World::start(activities, orchestrations).await;
    for (number, text) in ["5", "null", "true", "", "{\"a\": 1}", "[1]", "\"", "two\nlines"].into_iter().enumerate() {
        let id = format!("i{number}");
        world.client.start_orchestration_typed(&id, "TextOfPlain", text).await.unwrap();
        let read: String = world.client.wait_for_orchestration_typed(&id, SOON).await.unwrap();
        assert_eq!(read, text);
        assert_eq!(world.outcome(&id).await.unwrap(), text, "it is stored as it is");
    }
}

#[tokio::test]
async fn events_and_queues_bring_texts_to_typed_waits() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        let plain: String = ctx.schedule_wait_typed("word").await;
        let typed: String = ctx.schedule_wait_typed("word").await;
        let maybe: Option<String> = ctx.dequeue_event_typed("words").await;
        let nothing: Option<String> = ctx.dequeue_event_typed("words").await;
        let name: Name = ctx.dequeue_event_typed("words").await;
        let order: Order = ctx.dequeue_event_typed("words").await;
        Ok(format!("{plain} {typed} {maybe:?} {nothing:?} {} {}", name.0, order.item))
    };
    let world = World::start(activities(), orchestration("Wait", code)).await;
    let client = &world.client;
    client.start_orchestration("i", "Wait", "").await.unwrap();
    world.events("i", 2).await;
    client.raise_event("i", "word", "plain").await.unwrap();
    world.events("i", 4).await;
    client.raise_event_typed("i", "word", &"typed").await.unwrap();
    client.enqueue_event("i", "words", "some").await.unwrap();
    client.enqueue_event_typed("i", "words", &None::<String>).await.unwrap();
    client.enqueue_event_typed("i", "words", &Name("Bob".to_owned())).await.unwrap();
    client.enqueue_event_typed("i", "words", &Order { item: "book".to_owned(), count: 1 }).await.unwrap();
    assert_eq!(world.outcome("i").await.unwrap(), "plain typed Some(\"some\") None Bob book");
}

#[tokio::test]
async fn values_of_the_kv_are_texts_for_both() {
    let code = |ctx: OrchestrationContext, _: String| async move {
        ctx.set_kv_value_typed("typed", &"text".to_owned());
        ctx.set_kv_value("plain", "text");
        ctx.set_kv_value_typed("order", &Order { item: "book".to_owned(), count: 2 });
        let plain = ctx.get_kv_value("typed").unwrap_or_default();
        let typed: Option<String> = ctx.get_kv_value_typed("plain")?;
        let order: Option<Order> = ctx.get_kv_value_typed("order")?;
        let own = ctx.instance_id();
        let far: Option<String> = ctx.get_kv_value_from_instance_typed(own, "plain").await?;
        Ok(format!("{plain} {typed:?} {} {far:?}", order.map_or(0, |order| order.count)))
    };
    let world = World::start(activities(), orchestration("Store", code)).await;
    let text = "text Some(\"text\") 2 Some(\"text\")";
    assert_eq!(world.run("Store", "").await.unwrap(), text);
    let client = &world.client;
    assert_eq!(client.get_kv_value("Store-1", "typed").await.unwrap().as_deref(), Some("text"));
    assert_eq!(client.get_kv_value_typed::<String>("Store-1", "plain").await.unwrap().as_deref(), Some("text"));
    let waited: String = client.wait_for_kv_value_typed("Store-1", "plain", SOON).await.unwrap();
    assert_eq!(waited, "text");
}

#[tokio::test]
async fn a_typed_start_takes_a_value_or_a_reference() {
    let code = |_: OrchestrationContext, order: Order| async move { Ok(order) };
    let registry = OrchestrationRegistry::builder().register_versioned_typed("Buy", "2.0.0", code);
    let world = World::start(activities(), registry).await;
    let (client, order) = (&world.client, Order { item: "book".to_owned(), count: 3 });
    client.start_orchestration_typed("a", "Buy", &order).await.unwrap();
    client.start_orchestration_typed("b", "Buy", order.clone()).await.unwrap();
    client.start_orchestration_versioned_typed("c", "Buy", "2.0.0", &order).await.unwrap();
    client.start_orchestration_versioned_typed("d", "Buy", "2.0.0", order.clone()).await.unwrap();
    for id in ["a", "b", "c", "d"] {
        assert_eq!(client.wait_for_orchestration_typed::<Order>(id, SOON).await.unwrap(), order);
    }
}

#[tokio::test]
async fn a_value_that_does_not_fit_is_told_with_instance_name_and_direction() {
    let activities = ActivityRegistry::builder()
        .register_typed("Charge", |_: ActivityContext, order: Order| async move { Ok(order.item) })
        .register("Plain", |_: ActivityContext, _: String| async { Ok("{}".to_owned()) });
    let orchestrations = OrchestrationRegistry::builder()
        .register(
            "Input",
            |ctx: OrchestrationContext, _: String| async move { ctx.schedule_activity("Charge", "{}").await },
        )
        .register("Result", |ctx: OrchestrationContext, _: String| async move {
            ctx.set_kv_value("key", "{}");
            Ok(ctx
                .schedule_activity_typed::<_, Order>("Plain", &1)
                .await
                .map_or_else(|error| error, |order| order.item))
        })
        .register_typed("Buy", |_: OrchestrationContext, order: Order| async move { Ok(order) });
    let world = World::start(activities, orchestrations).await;
    let json = "is not the expected JSON: missing field `item`";
    let input = world.run("Input", "").await.unwrap_err().display_message();
    assert!(input.contains(&format!("instance \"Input-1\": the input of activity \"Charge\" {json}")), "{input}");
    let result = world.run("Result", "").await.unwrap();
    assert!(result.starts_with(&format!("instance \"Result-1\": the result of activity \"Plain\" {json}")), "{result}");
    let bought = world.run("Buy", "{}").await.unwrap_err().display_message();
    assert!(bought.contains(&format!("instance \"Buy-1\": the input of orchestration \"Buy\" {json}")), "{bought}");
    let text = |error: ClientError| error.to_string();
    let client = &world.client;
    let value = client.wait_for_kv_value_typed::<Order>("Result-1", "key", SOON).await.map_err(text).unwrap_err();
    assert!(value.contains(&format!("instance \"Result-1\": the value of key \"key\" {json}")), "{value}");
    let value = client.get_kv_value_typed::<Order>("Result-1", "key").await.map_err(text).unwrap_err();
    assert!(value.contains(&format!("instance \"Result-1\": the value of key \"key\" {json}")), "{value}");
    let output = client.wait_for_orchestration_typed::<Order>("Result-1", SOON).await.map_err(text).unwrap_err();
    assert!(
        output.contains("instance \"Result-1\": the result of the orchestration is not the expected JSON"),
        "{output}"
    );
}
