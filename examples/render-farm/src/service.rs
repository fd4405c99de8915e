//! The service: what the outside sees of the farm. It starts pictures, tells how far they are, and hands them out.

use std::collections::BTreeMap;
use std::net::IpAddr;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures::future::join_all;
use outlast::{Client, ClientError, OrchestrationStatus, StartOptions, StartOutcome};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use crate::activities::{ASSEMBLE, JOIN, RENDER};
use crate::orchestrations::{PICTURE, Progress, strip_id};
use crate::picture::png_of_text;
use crate::plan::Plan;
use crate::results::{made, made_once};

/// What stands before the address in the line that says where the service is.
pub(crate) const GREETING: &str = "serving on http://";

/// How far a picture is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stand {
    pub(crate) ended: bool,
    /// Why there will be no picture.
    pub(crate) error: Option<String>,
    pub(crate) tiles_done: u32,
    pub(crate) strips_done: u32,
}

/// Whose results the picture was made of: how many by worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Account {
    pub(crate) rendered: BTreeMap<String, u32>,
    pub(crate) joined: BTreeMap<String, u32>,
}

/// Serves until `end`.
pub(crate) async fn serve(client: Client, address: (IpAddr, u16), end: impl Future<Output = ()>) -> anyhow::Result<()> {
    let routes = Router::new()
        .route("/pictures/{id}", get(stand).put(order).delete(forget))
        .route("/pictures/{id}/png", get(png))
        .route("/pictures/{id}/account", get(account))
        .with_state(client);
    let listener = TcpListener::bind(address).await?;
    println!("{GREETING}{}", listener.local_addr()?);
    // Not a graceful end: that would wait for every open connection.
    tokio::select! {
        served = axum::serve(listener, routes).into_future() => Ok(served?),
        () = end => Ok(()),
    }
}

/// The same order twice is one picture: a caller that got no answer may send it again.
async fn order(
    State(client): State<Client>,
    Path(id): Path<String>,
    Json(plan): Json<Plan>,
) -> Result<StatusCode, Refused> {
    let input = serde_json::to_string(&plan)?;
    let start = StartOptions { instance: id, orchestration: PICTURE.to_owned(), input, ..StartOptions::default() };
    Ok(match client.start_with(start).await? {
        StartOutcome::Started | StartOutcome::Replaced => StatusCode::CREATED,
        StartOutcome::AlreadyExists => StatusCode::OK,
        StartOutcome::AlreadyExistsWithOtherInput => StatusCode::CONFLICT,
    })
}

async fn stand(State(client): State<Client>, Path(id): Path<String>) -> Result<Json<Stand>, Refused> {
    let (progress, ended) = match client.get_orchestration_status(&id).await? {
        OrchestrationStatus::NotFound => return Err(ClientError::InstanceNotFound { instance_id: id }.into()),
        OrchestrationStatus::Failed { details, .. } => {
            let error = Some(details.display_message());
            return Ok(Json(Stand { ended: true, error, ..Stand::default() }));
        }
        OrchestrationStatus::Running { custom_status, .. } => (custom_status, false),
        OrchestrationStatus::Completed { custom_status, .. } => (custom_status, true),
    };
    let Some(progress) = progress else { return Ok(Json(Stand::default())) };
    let progress: Progress = serde_json::from_str(&progress)?;
    let tiles_done = if ended {
        progress.tiles
    } else {
        let ids = (0..progress.strips).map(|number| strip_id(&id, number));
        join_all(ids.map(|id| tiles_done(&client, id))).await.into_iter().sum::<Result<_, Refused>>()?
    };
    Ok(Json(Stand { ended, error: None, tiles_done, strips_done: progress.strips_done }))
}

/// Of one strip, which may not have begun.
async fn tiles_done(client: &Client, strip: String) -> Result<u32, Refused> {
    match client.get_orchestration_status(&strip).await? {
        OrchestrationStatus::Running { custom_status: Some(done), .. }
        | OrchestrationStatus::Completed { custom_status: Some(done), .. } => Ok(done.parse()?),
        OrchestrationStatus::NotFound
        | OrchestrationStatus::Running { .. }
        | OrchestrationStatus::Completed { .. }
        | OrchestrationStatus::Failed { .. } => Ok(0),
    }
}

async fn png(State(client): State<Client>, Path(id): Path<String>) -> Result<Response, Refused> {
    let png = png_of_text(&made_once(&client, &id, ASSEMBLE).await?)?;
    Ok(([(header::CONTENT_TYPE, "image/png")], png).into_response())
}

async fn account(State(client): State<Client>, Path(id): Path<String>) -> Result<Json<Account>, Refused> {
    let mut account = Account::default();
    for strip in client.get_instance_tree(&id).await?.all_ids {
        for (activity, by) in [(RENDER, &mut account.rendered), (JOIN, &mut account.joined)] {
            for made in made::<IgnoredAny>(&client, &strip, activity).await? {
                *by.entry(made.worker).or_default() += 1;
            }
        }
    }
    Ok(Json(account))
}

async fn forget(State(client): State<Client>, Path(id): Path<String>) -> Result<StatusCode, Refused> {
    client.delete_instance(&id, true).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What a handler returns when it could not do what was asked.
struct Refused(anyhow::Error);

impl<E: Into<anyhow::Error>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let code = match self.0.downcast_ref::<ClientError>() {
            Some(ClientError::InstanceNotFound { .. }) => StatusCode::NOT_FOUND,
            Some(ClientError::InstanceExists { .. }) => StatusCode::CONFLICT,
            Some(error) if error.is_retryable() => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (code, format!("{:#}", self.0)).into_response()
    }
}
