//! A failed call of the client as an answer: whose fault it was, and whether to try again.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use outlast::ClientError;
use serde_json::json;

/// What a handler returns when the client refused.
pub(crate) struct Refused(ClientError);

impl From<ClientError> for Refused {
    fn from(error: ClientError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let code = match &self.0 {
            ClientError::InvalidInput { .. } => StatusCode::BAD_REQUEST,
            ClientError::InstanceNotFound { .. } | ClientError::ExecutionNotFound { .. } => StatusCode::NOT_FOUND,
            ClientError::InstanceExists { .. }
            | ClientError::InstanceStillRunning { .. }
            | ClientError::CannotDeleteSubOrchestration { .. } => StatusCode::CONFLICT,
            ClientError::QueueFull { .. } => StatusCode::TOO_MANY_REQUESTS,
            ClientError::OrchestrationFailed { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            ClientError::ManagementNotAvailable => StatusCode::NOT_IMPLEMENTED,
            ClientError::Forbidden { .. } => StatusCode::FORBIDDEN,
            ClientError::Provider(error) if error.is_retryable() => StatusCode::SERVICE_UNAVAILABLE,
            ClientError::Provider(_) => StatusCode::INTERNAL_SERVER_ERROR,
            ClientError::Timeout => StatusCode::GATEWAY_TIMEOUT,
        };
        (code, Json(json!({ "error": self.0.to_string() }))).into_response()
    }
}
