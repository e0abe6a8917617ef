//! Floor 3: the admin API. Checks everything again, because the border is here and not at the command line; writes desired
//! state, reads what is. It never opens a path that a client named and never compiles text.

mod answer;
mod auth;
pub(crate) mod capabilities;
mod crashes;
mod door;
mod inside;
pub mod modules;
mod observe;
mod openapi;
mod rollout;
mod runs;
mod schedules;
mod secrets;
mod services;

use std::sync::Arc;

use axum::Router;
use axum::routing::{any, delete, get, head, post, put};

use crate::agent::Agent;
use crate::artifacts::Artifacts;
use crate::clock::Clock;
use crate::controller::Controller;
use crate::crashes::Crashes;
use crate::daemon::settings::Settings;
use crate::events::Events;
use crate::logs::Logs;
use crate::metrics::Metrics;
use crate::secrets::Secrets;
use crate::store::Records;

pub use answer::Refused;
pub use auth::Token;
pub use door::Door;
pub use modules::Modules;
pub use observe::kind_name;

/// What the handlers read and write.
pub struct Api {
    pub controller: Arc<Controller>,
    pub agent: Arc<Agent>,
    pub records: Arc<Records>,
    pub secrets: Arc<Secrets>,
    pub blobs: Artifacts,
    pub modules: modules::Modules,
    pub logs: Arc<Logs>,
    pub events: Arc<Events>,
    pub metrics: Arc<Metrics>,
    pub crashes: Arc<Crashes>,
    pub clock: Clock,
    pub settings: Arc<Settings>,
}

/// A service file is small; a body over this is refused before it is read.
const BODY_LIMIT: usize = 1 << 20;

/// Every route of the API, without authentication: the door adds that.
pub fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route("/healthz", get(observe::healthz))
        .route("/metrics", get(observe::metrics))
        .route("/v1/metrics", get(observe::metrics))
        .route("/v1/openapi.json", get(openapi::document))
        .route("/v1/node", get(observe::node))
        .route("/v1/services", get(services::list))
        .route("/v1/services/{name}", put(services::deploy))
        .route("/v1/services/{name}", delete(services::remove))
        .route("/v1/services/{name}/status", get(services::status))
        .route("/v1/services/{name}/spec", get(services::spec))
        .route("/v1/services/{name}/scale", post(services::scale))
        .route("/v1/services/{name}/restart", post(services::restart))
        .route("/v1/services/{name}/start", post(services::start))
        .route("/v1/services/{name}/stop", post(services::stop))
        .route("/v1/services/{name}/rollout", get(rollout::show))
        .route("/v1/services/{name}/rollout/{verb}", post(rollout::change))
        .route("/v1/services/{name}/revisions", get(services::revisions))
        .route("/v1/services/{name}/undo", post(services::undo))
        .route("/v1/services/{name}/runs", get(runs::list))
        .route("/v1/services/{name}/runs", post(runs::begin))
        .route("/v1/services/{name}/runs/{id}", delete(runs::cancel))
        .route("/v1/services/{name}/logs", get(observe::logs))
        .route("/v1/services/{name}/call/", any(inside::call_root))
        .route("/v1/services/{name}/call/{*path}", any(inside::call))
        .route("/v1/services/{name}/schedules", get(schedules::list))
        .route(
            "/v1/services/{name}/schedules/{schedule}/history",
            get(schedules::history),
        )
        .route("/v1/services/{name}/schedules/{schedule}/run", post(schedules::run))
        .route("/v1/services/{name}/schedules/{schedule}/pause", post(schedules::pause))
        .route(
            "/v1/services/{name}/schedules/{schedule}/resume",
            post(schedules::resume),
        )
        .route("/v1/schedules", get(schedules::all))
        .route("/v1/events", get(observe::event_lines))
        .route("/v1/crashes", get(crashes::list))
        .route("/v1/crashes/{id}", get(crashes::show))
        .route("/v1/modules", get(modules::list))
        .route("/v1/modules/prune", post(modules::prune))
        .route("/v1/modules/{digest}", head(modules::known))
        .route("/v1/modules/{digest}", get(modules::download))
        .route("/v1/modules/{digest}", put(modules::upload))
        .route("/v1/secrets", get(secrets::list))
        .route("/v1/secrets/{name}", put(secrets::set))
        .route("/v1/secrets/{name}", delete(secrets::remove))
        .route("/v1/config", get(observe::config))
        .route("/v1/config/reload", post(observe::reload))
        .layer(axum::extract::DefaultBodyLimit::max(BODY_LIMIT))
        .fallback(answer::no_such_path)
        .method_not_allowed_fallback(answer::no_such_method)
        .with_state(api)
}
