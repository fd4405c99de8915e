//! A web service with orchestrations inside: axum for HTTP, a runtime and a client in the same process.
//!
//! `POST /orders` starts an order, `GET /orders/{id}` tells where it stands, `POST /orders/{id}/approve` lets it go on.
//! `cargo run --example axum_service` serves on a free port, sends itself some requests, prints them and exits.
//! `cargo run --example axum_service -- --serve 8080` serves until ctrl-c and keeps its orders in `orders.sqlite`. It needs
//! no handler for ctrl-c: what was answered is on the disk, and the next start goes on with it.

mod demo;
mod order;
mod refused;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use clap::Parser;
use outlast::providers::sqlite::SqliteProvider;
use outlast::runtime::Runtime;
use outlast::{
    ActivityRegistry, Client, ClientError, OrchestrationRegistry, OrchestrationStatus, RuntimeOptions, StartOptions,
    StartOutcome,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use order::Order;
use refused::Refused;

/// Serves orders over HTTP.
#[derive(Parser)]
struct Arguments {
    /// Serve on this port of 127.0.0.1 until ctrl-c, instead of showing a few requests.
    #[arg(long, value_name = "PORT")]
    serve: Option<u16>,
    /// The database file of `--serve`.
    #[arg(long, default_value = "orders.sqlite")]
    database: PathBuf,
}

/// The same order twice is one order: a caller that got no answer may send it again.
async fn create(State(client): State<Client>, Json(order): Json<Order>) -> Result<StatusCode, Refused> {
    let input =
        serde_json::to_string(&order).map_err(|error| ClientError::InvalidInput { message: error.to_string() })?;
    let start =
        StartOptions { instance: order.id, orchestration: "Order".to_owned(), input, ..StartOptions::default() };
    Ok(match client.start_with(start).await? {
        StartOutcome::Started | StartOutcome::Replaced => StatusCode::CREATED,
        StartOutcome::AlreadyExists => StatusCode::OK,
        StartOutcome::AlreadyExistsWithOtherInput => StatusCode::CONFLICT,
    })
}

async fn show(State(client): State<Client>, Path(id): Path<String>) -> Result<Json<Value>, Refused> {
    Ok(Json(match client.get_orchestration_status(&id).await? {
        OrchestrationStatus::NotFound => return Err(ClientError::InstanceNotFound { instance_id: id }.into()),
        OrchestrationStatus::Running { custom_status, .. } => json!({ "state": "running", "detail": custom_status }),
        OrchestrationStatus::Completed { output, .. } => json!({ "state": "completed", "detail": output }),
        OrchestrationStatus::Failed { details, .. } => {
            json!({ "state": "failed", "detail": details.display_message() })
        }
    }))
}

async fn approve(
    State(client): State<Client>,
    Path(id): Path<String>,
    Json(by): Json<String>,
) -> Result<StatusCode, Refused> {
    client.enqueue_event(id, "approvals", by).await?;
    Ok(StatusCode::ACCEPTED)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let provider = match arguments.serve {
        Some(_) => SqliteProvider::new(&format!("sqlite:{}", arguments.database.display()), None).await?,
        None => SqliteProvider::new_in_memory().await?,
    };
    let provider = Arc::new(provider);
    let activities = ActivityRegistry::builder().register("Ship", order::ship).build();
    let orchestrations = OrchestrationRegistry::builder().register("Order", order::order).build();
    let runtime = Runtime::try_start(provider.clone(), activities, orchestrations, RuntimeOptions::default()).await?;

    let client = Client::new(provider);
    let routes = Router::new()
        .route("/orders", post(create))
        .route("/orders/{id}", get(show))
        .route("/orders/{id}/approve", post(approve))
        .with_state(client.clone());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, arguments.serve.unwrap_or(0))).await?;
    let address = listener.local_addr()?;
    println!("serving on http://{address}");
    let server = async move { axum::serve(listener, routes).await };
    if arguments.serve.is_some() {
        server.await?;
    } else {
        let server = tokio::spawn(server);
        demo::show(address, &client).await?;
        server.abort();
    }

    runtime.shutdown(None).await;
    Ok(())
}
