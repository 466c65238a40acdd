//! The page at `/` and the OpenAPI document. Both are files of the tree, compiled in: no build step, no network.

use axum::{
    http::header,
    response::{Html, IntoResponse},
};

/// The dashboard: reads the REST API of the node that served it.
pub async fn page() -> Html<&'static str> {
    Html(include_str!("dashboard.html"))
}

/// The OpenAPI 3.1 document.
pub async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("../openapi.json"))
}
