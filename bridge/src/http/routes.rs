//! A router that can say where its resources are: whoever checks that each of them asks who calls must know of each. Must not know what they are.

use axum::Router;
use axum::routing::MethodRouter;

use super::Api;

/// Resources, and where each of them is.
pub(crate) struct Routes {
    router: Router<Api>,
    paths: Vec<String>,
}

impl Routes {
    pub(crate) fn new() -> Self {
        Self { router: Router::new(), paths: Vec::new() }
    }

    pub(crate) fn route(mut self, path: &str, methods: MethodRouter<Api>) -> Self {
        self.paths.push(path.to_owned());
        Self { router: self.router.route(path, methods), paths: self.paths }
    }

    pub(crate) fn router(self) -> Router<Api> {
        self.router
    }

    pub(crate) fn paths(self) -> Vec<String> {
        self.paths
    }
}
