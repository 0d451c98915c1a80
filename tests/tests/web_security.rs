//! What is served over HTTP, judged as a whole: each resource by each caller and with each method, forms of other sites, hostile names, paths that lead
//! elsewhere, bodies that are bombs, messages that are two, and what browsers are told with every answer.
//!
//! The resources are those of the routers: one that the table does not have fails.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "web_security/bombs.rs"]
mod bombs;
#[path = "web_security/callers.rs"]
mod callers;
#[path = "web_security/forms.rs"]
mod forms;
#[path = "web_security/matrix.rs"]
mod matrix;
#[path = "web_security/names.rs"]
mod names;
#[path = "web_security/paths.rs"]
mod paths;
#[path = "web_security/rules.rs"]
mod rules;
#[path = "web_security/table.rs"]
mod table;
#[path = "web_security/wire.rs"]
mod wire;
#[path = "web_security/world.rs"]
mod world;

use world::World;

/// One site for all that leaves it as it was.
#[test]
fn nobody_gets_what_is_not_for_him() {
    let world = World::new();
    let timed = |what: &str, check: &dyn Fn()| {
        let begun = std::time::Instant::now();
        check();
        println!("{what}: {:.1} s", begun.elapsed().as_secs_f32());
    };
    timed("the table is whole", &|| matrix::the_table_is_whole(&world));
    timed("each resource by each caller", &|| matrix::each_resource_by_each_caller(&world));
    timed("methods", &|| matrix::other_methods_do_nothing(&world));
    timed("forms", &|| forms::forms_of_others_do_nothing(&world));
    timed("names", &|| names::names_are_text(&world));
    timed("paths", &|| paths::paths_lead_nowhere_else(&world));
    timed("wire", &|| wire::one_message_is_one_request(&world));
    timed("rules", &|| rules::every_answer_has_its_rules(&world));
    world.is_well();
}

#[test]
fn bodies_that_are_bombs_do_not_go_off() {
    bombs::bodies_that_are_bombs_do_not_go_off();
}

#[test]
fn a_body_that_stands_still_is_ended() {
    bombs::what_stands_still_is_ended();
}

#[test]
fn the_door_for_signed_retrieval_reads_no_entities() {
    bombs::soap_has_no_entities();
}

#[test]
fn over_tls_browsers_are_told_to_stay_there() {
    rules::over_tls_browsers_are_told_to_stay_there();
}
