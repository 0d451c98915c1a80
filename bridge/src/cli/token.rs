//! The commands about bearer tokens. They work on the database itself, whether or not a bridge runs on it; a claim code is made for a
//! study that the running bridge has in custody.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use dicom_scp::Uid;
use serde_json::json;

use super::audit::keys_used;
use super::output::{Output, table};
use super::{Failed, consent};
use crate::access::{Access, Caller, Principal, Right, Shared};
use crate::audit::KeyUse;
use crate::config::Config;
use crate::decide::{Ask, Told, moment};
use crate::tokens::{DATABASE, Token, Tokens, parse_principal, principal_text};

const DAY_S: u64 = 86_400;

/// Commands about tokens.
#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Make a token and print it, once.
    New {
        /// What people call it.
        #[arg(long)]
        name: String,
        /// Who shows it: operator, peer:AETITLE (of a configured peer) or account:0x... (the owner of studies).
        #[arg(long = "as", value_name = "PRINCIPAL")]
        principal: String,
        /// Leave it only these of the principal's rights: find, retrieve, store, decide, request, break-glass, status, sources.
        #[arg(long, value_name = "RIGHTS", value_delimiter = ',')]
        may: Option<Vec<String>>,
        /// It ends after so many days; without it, when it is revoked.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: Option<u32>,
    },
    /// Print a code with which a patient takes a study over once, by POST /api/v1/claims.
    Claim {
        /// StudyInstanceUID, or study id on the ledger.
        study: String,
        /// It ends after so many days.
        #[arg(long, default_value_t = 14, value_parser = clap::value_parser!(u32).range(1..=366))]
        days: u32,
    },
    /// Make a token that sees one study and ends: what is behind the # of a link to /ui/shared. It is good while the study belongs to who owns it now.
    Share {
        /// StudyInstanceUID, or study id on the ledger.
        study: String,
        /// For whom it is.
        #[arg(long)]
        name: String,
        /// It ends after so many days.
        #[arg(long, default_value_t = 14, value_parser = clap::value_parser!(u32).range(1..=366))]
        days: u32,
    },
    /// List them.
    List,
    /// End one for ever.
    Revoke {
        /// Its id, as `token list` shows it.
        id: String,
    },
}

/// Runs one.
pub(super) async fn run(command: TokenCommand, config: &Config, output: &Output) -> Result<(), Failed> {
    let data_dir = &config.site.data_dir;
    std::fs::create_dir_all(data_dir)?;
    let tokens = Tokens::open(&data_dir.join(DATABASE))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    match command {
        TokenCommand::New { name, principal, may, days } => {
            let caller = caller(config, &principal, may)?;
            let expires = days.map(|days| now + u64::from(days) * DAY_S);
            let (token, shown) = tokens.create(&name, &caller, now, expires)?;
            let about = format!("token {} of {}", token.id, principal_text(&caller.principal));
            keys_used(config, KeyUse::TokenNew, &about, Ok(())).await?;
            if output.is_json() {
                output.json(&json!({ "id": token.id, "token": *shown, "expires_s": token.expires_s }));
            } else {
                println!("{}", *shown);
            }
        }
        TokenCommand::Claim { study, days } => {
            let Told::HandOver(paper) = consent::tell(config, Ask::HandOver { study }).await? else {
                return Err(Failed("the bridge answered something else".into()));
            };
            if !paper.custodial {
                return Err(Failed("the study's owner has a key of his own already".into()));
            }
            let expires = now + u64::from(days) * DAY_S;
            let code = tokens.create_claim(paper.study_id.parse()?, now, expires)?;
            keys_used(config, KeyUse::ClaimCode, &paper.study_id, Ok(())).await?;
            if output.is_json() {
                output.json(&json!({ "code": *code, "study_id": paper.study_id, "expires_s": expires }));
            } else {
                println!("{}", *code);
            }
        }
        TokenCommand::Share { study, name, days } => {
            let Told::HandOver(paper) = consent::tell(config, Ask::HandOver { study }).await? else {
                return Err(Failed("the bridge answered something else".into()));
            };
            if !paper.custodial {
                return Err(Failed("only the study's owner, who has a key of his own, makes links to it".into()));
            }
            let uid = paper.study_uid.ok_or_else(|| Failed("the study is not here".into()))?;
            let study = Uid::new(&uid).map_err(|_| Failed(format!("\"{uid}\" is no UID")))?;
            let principal = Principal::Shared(Shared { study, owner: paper.owner.parse()? });
            let expires = now + u64::from(days) * DAY_S;
            let (token, shown) = tokens.create(&name, &Caller { principal, narrowed: None }, now, Some(expires))?;
            let about = format!("token {} of {}", token.id, principal_text(&token.caller.principal));
            keys_used(config, KeyUse::TokenNew, &about, Ok(())).await?;
            if output.is_json() {
                output.json(&json!({ "id": token.id, "token": *shown, "expires_s": expires }));
            } else {
                println!("{}", *shown);
            }
        }
        TokenCommand::List => list(&tokens.list()?, now, output),
        TokenCommand::Revoke { id } => {
            if !tokens.revoke(&id, now)? {
                return Err(Failed(format!("there is no token with the id \"{id}\"")));
            }
            keys_used(config, KeyUse::TokenRevoke, &format!("token {id}"), Ok(())).await?;
            output.done("revoked", &[("id", id)]);
        }
    }
    Ok(())
}

fn caller(config: &Config, principal: &str, may: Option<Vec<String>>) -> Result<Caller, Failed> {
    let principal = parse_principal(principal)?;
    if matches!(principal, Principal::Shared(_)) {
        return Err(Failed("a link to a study is made by `token share STUDY`".into()));
    }
    let access = Access::new(config);
    if let Principal::Peer(title) = &principal
        && access.peer(title).is_none()
    {
        return Err(Failed(format!("no [[peer]] of the configuration has ae_title = \"{title}\"")));
    }
    let all = access.rights(&Caller { principal: principal.clone(), narrowed: None });
    let words = |rights: &[Right]| rights.iter().map(|right| right.name()).collect::<Vec<_>>().join(", ");
    let right = |name: String| {
        let found = Right::from_name(&name).filter(|right| all.contains(right));
        found.ok_or_else(|| {
            Failed(format!("{} has no right \"{name}\"; it has: {}", principal_text(&principal), words(&all)))
        })
    };
    let narrowed = may.map(|names| names.into_iter().map(right).collect::<Result<Vec<_>, _>>()).transpose()?;
    Ok(Caller { principal, narrowed })
}

fn list(tokens: &[Token], now: u64, output: &Output) {
    let state = |token: &Token| match (token.revoked_s, token.is_good(now)) {
        (Some(_), _) => "revoked",
        (None, true) => "good",
        (None, false) => "expired",
    };
    let rights = |token: &Token| {
        token.caller.narrowed.as_ref().map(|rights| rights.iter().map(|r| r.name()).collect::<Vec<_>>())
    };
    if output.is_json() {
        let rows = tokens.iter().map(|token| {
            json!({
                "id": token.id, "name": token.name, "principal": principal_text(&token.caller.principal),
                "rights": rights(token), "state": state(token), "created_s": token.created_s,
                "expires_s": token.expires_s, "revoked_s": token.revoked_s, "used_s": token.used_s,
            })
        });
        return output.json(&rows.collect::<Vec<_>>());
    }
    let time = |at: Option<u64>| at.map_or_else(|| "-".to_owned(), moment);
    let cells = tokens.iter().map(|token| {
        vec![
            token.id.clone(),
            token.name.clone(),
            principal_text(&token.caller.principal),
            rights(token).map_or_else(|| "all".to_owned(), |rights| rights.join(",")),
            state(token).to_owned(),
            time(token.expires_s),
            time(token.used_s),
        ]
    });
    print!("{}", table(&["ID", "NAME", "AS", "MAY", "STATE", "UNTIL", "USED"], cells.collect()));
}
