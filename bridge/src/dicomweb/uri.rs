//! WADO-URI (PS3.18 9): one object by query parameters, for clients older than resources. Answered by the resources, as if they had been asked.

use axum::extract::State;
use axum::response::Response;
use dicom_scp::Uid;

use super::ask::{Ask, Target};
use super::negotiate::Accepted;
use super::{objects, pictures};
use crate::http::{Api, Problem};

const DICOM: &str = "application/dicom";
/// Parameters that ask for what there is not.
const UNSUPPORTED: [&str; 5] = ["anonymize", "annotation", "region", "presentationUID", "presentationSeriesUID"];

/// An object, or a picture of it.
pub(super) async fn retrieve(State(api): State<Api>, mut ask: Ask) -> Result<Response, Problem> {
    let asked = Asked::parse(&ask.parameters)?;
    ask.target = asked.target;
    match asked.form {
        Form::Object(transfer_syntax) => object(api, ask, transfer_syntax.as_deref()).await,
        Form::Picture(accept) => picture(api, ask, asked.picture, accept).await,
        // Of images a picture, of all else the object (PS3.18 9.1.2.2.1).
        Form::Any => {
            let drawn = picture(api.clone(), ask.clone(), asked.picture, "image/jpeg".to_owned()).await;
            match drawn {
                Err(problem) if problem.is_absence() => object(api, ask, None).await,
                other => other,
            }
        }
    }
}

/// In a transfer syntax, and where that cannot be had, or none is named, in the default one (PS3.18 9.1.2.2.4).
async fn object(api: Api, mut ask: Ask, transfer_syntax: Option<&str>) -> Result<Response, Problem> {
    let named = transfer_syntax.map(|named| format!("{DICOM}; transfer-syntax={named}, "));
    ask.accepted = Accepted::written(&format!("{}{DICOM}", named.unwrap_or_default()));
    objects::retrieve(State(api), ask).await
}

async fn picture(api: Api, mut ask: Ask, picture: Picture, accept: String) -> Result<Response, Problem> {
    ask.accepted = Accepted::written(&accept);
    ask.rest = picture.frame;
    ask.parameters = picture.parameters;
    pictures::rendered(State(api), ask).await
}

/// A request, understood.
#[derive(Debug)]
struct Asked {
    target: Target,
    form: Form,
    picture: Picture,
}

#[derive(Debug, PartialEq, Eq)]
enum Form {
    /// In a transfer syntax, if one is named.
    Object(Option<String>),
    /// Of one of these media types.
    Picture(String),
    Any,
}

/// As the rendered resources name it.
#[derive(Debug, Default)]
struct Picture {
    frame: String,
    parameters: Vec<(String, String)>,
}

impl Asked {
    fn parse(parameters: &[(String, String)]) -> Result<Self, Problem> {
        let value = |name: &str| parameters.iter().find(|(found, _)| found == name).map(|(_, value)| value.trim());
        if value("requestType") != Some("WADO") {
            return Err(Problem::bad_request("requestType must be WADO"));
        }
        if let Some(name) = UNSUPPORTED.into_iter().find(|name| value(name).is_some_and(|value| !value.is_empty())) {
            return Err(Problem::bad_request(format!("{name} is not supported here")));
        }
        let uid = |name: &str| {
            let uid = value(name).and_then(|text| Uid::new(text).ok());
            uid.ok_or_else(|| Problem::bad_request(format!("{name} must be a UID")))
        };
        let target = Target {
            study: Some(uid("studyUID")?),
            series: Some(uid("seriesUID")?),
            instance: Some(uid("objectUID")?),
        };
        let kinds = value("contentType").unwrap_or_default();
        let first = kinds.split(',').next().unwrap_or_default().trim();
        let form = match first {
            "" | "*/*" => Form::Any,
            DICOM => Form::Object(value("transferSyntax").filter(|named| !named.is_empty()).map(str::to_owned)),
            _ => Form::Picture(kinds.to_owned()),
        };
        Ok(Self { target, form, picture: Picture::parse(&value)? })
    }
}

impl Picture {
    fn parse<'a>(value: &dyn Fn(&str) -> Option<&'a str>) -> Result<Self, Problem> {
        let mut parameters = Vec::new();
        let mut put = |name: &str, value: String| parameters.push((name.to_owned(), value));
        match (value("columns"), value("rows")) {
            (None, None) => {}
            (Some(columns), Some(rows)) => put("viewport", format!("{columns},{rows}")),
            (Some(side), None) | (None, Some(side)) => put("viewport", format!("{side},{side}")),
        }
        match (value("windowCenter"), value("windowWidth")) {
            (None, None) => {}
            (Some(center), Some(width)) => put("window", format!("{center},{width},linear")),
            _ => return Err(Problem::bad_request("windowCenter and windowWidth go together")),
        }
        if let Some(quality) = value("imageQuality") {
            put("quality", quality.to_owned());
        }
        Ok(Self { frame: value("frameNumber").unwrap_or_default().to_owned(), parameters })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn asked(query: &str) -> Result<Asked, Problem> {
        let named = format!("requestType=WADO&studyUID=1.2&seriesUID=1.2.3&objectUID=1.2.3.4&{query}");
        let pairs = named.split('&').filter_map(|pair| pair.split_once('='));
        Asked::parse(&pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect::<Vec<_>>())
    }

    #[test]
    fn what_is_asked_is_what_a_resource_is_asked() {
        let picture =
            asked("contentType=image/png&rows=10&columns=20&windowCenter=4&windowWidth=5&imageQuality=7&frameNumber=3");
        let picture = picture.unwrap();
        assert_eq!(picture.form, Form::Picture("image/png".to_owned()));
        assert_eq!(picture.picture.frame, "3");
        let expected = [("viewport", "20,10"), ("window", "4,5,linear"), ("quality", "7")];
        assert_eq!(picture.picture.parameters, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(asked("").unwrap().form, Form::Any);
        assert_eq!(asked("contentType=application/dicom").unwrap().form, Form::Object(None));
        let object = asked("contentType=application/dicom&transferSyntax=1.2.840.10008.1.2").unwrap();
        assert_eq!(object.form, Form::Object(Some("1.2.840.10008.1.2".to_owned())));
    }

    #[test]
    fn what_cannot_be_is_refused_with_words() {
        for (query, word) in
            [("anonymize=yes", "anonymize"), ("region=0,0,1,1", "region"), ("windowWidth=3", "together")]
        {
            assert!(format!("{:?}", asked(query).unwrap_err()).contains(word), "{query}");
        }
        for query in ["studyUID=1", "requestType=WADO&studyUID=1.2&seriesUID=x&objectUID=1"] {
            let pairs: Vec<_> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
            let pairs: Vec<_> = pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
            assert!(Asked::parse(&pairs).is_err(), "{query}");
        }
    }
}
