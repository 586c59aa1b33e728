//! Which model a request means: by name, alias, or endpoint, among those that there are for whoever asks.

use super::caller::Caller;
use super::error::ApiError;
use crate::config::{Config, ModelConfig};
use crate::domain::{Failure, FailureKind, Kind, nearest, shown};

/// Most models that are named to a client who named none.
const CANDIDATES_SHOWN: usize = 10;

/// The models that there are for whoever asks.
pub(super) fn seen<'a>(config: &'a Config, caller: &Caller) -> impl Iterator<Item = &'a ModelConfig> {
    config.models.values().filter(|model| caller.sees(model.id.as_str()))
}

/// The entry of this name or alias, or a refusal with the nearest name. One that is not for this caller is refused as if it
/// were not there.
pub(super) fn by_name<'a>(config: &'a Config, caller: &Caller, name: &str) -> Result<&'a ModelConfig, ApiError> {
    let find = |name: &str| {
        let by_id = config.models.get(name).filter(|model| caller.sees(model.id.as_str()));
        by_id.or_else(|| seen(config, caller).find(|model| model.is_called(name)))
    };
    // Ollama's clients put its default tag behind a name.
    if let Some(model) = find(name).or_else(|| find(name.strip_suffix(":latest")?)) {
        caller.access().asks_for(&model.id);
        return Ok(model);
    }
    let known = seen(config, caller)
        .flat_map(|model| std::iter::once(model.id.as_str()).chain(model.aliases.iter().map(String::as_str)));
    let hint = nearest(name, known).map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
    let message = format!("the model `{}` does not exist{hint}", shown(name));
    Err(Failure::new(FailureKind::UnknownModel, message).into())
}

/// What a request asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    pub(super) kind: Kind,
    pub(super) endpoint: &'a str,
}

/// The model for a request of this kind to this endpoint, which may name none.
pub(super) fn for_request<'a>(
    config: &'a Config,
    caller: &Caller,
    name: Option<&str>,
    Wanted { kind, endpoint }: Wanted<'_>,
) -> Result<&'a ModelConfig, ApiError> {
    match name {
        Some(name) => {
            let model = by_name(config, caller, name)?;
            if model.kind == kind { Ok(model) } else { Err(wrong_kind(model, endpoint)) }
        }
        None => unnamed(seen(config, caller), kind, endpoint),
    }
}

/// The only model that declares the endpoint, or the one marked `default: true` among them.
pub(super) fn unnamed<'a>(
    models: impl Iterator<Item = &'a ModelConfig>,
    kind: Kind,
    endpoint: &str,
) -> Result<&'a ModelConfig, ApiError> {
    let declares = |model: &&ModelConfig| model.endpoint.as_deref().is_none_or(|declared| declared == endpoint);
    let candidates: Vec<_> = models.filter(|model| model.kind == kind).filter(declares).collect();
    let mut defaults = candidates.iter().filter(|model| model.default);
    match (candidates.as_slice(), defaults.next(), defaults.next()) {
        ([only], ..) => Ok(only),
        (_, Some(default), None) => Ok(default),
        ([], ..) => Err(ApiError::missing_model(&format!("and no {} model is configured", kind.name()))),
        _ => {
            let names: Vec<_> =
                candidates.iter().take(CANDIDATES_SHOWN).map(|model| format!("`{}`", model.id)).collect();
            let more = if candidates.len() > names.len() { ", ..." } else { "" };
            Err(ApiError::missing_model(&format!("name one of {}{more}", names.join(", "))))
        }
    }
}

pub(super) fn wrong_kind(model: &ModelConfig, endpoint: &str) -> ApiError {
    let mut message =
        format!("the model `{}` is of kind {} and does not answer {endpoint}", model.id, model.kind.name());
    if let Some(own) = model.endpoint.as_deref().filter(|own| *own != endpoint) {
        message.push_str(&format!("; ask {own}"));
    }
    Failure::new(FailureKind::WrongKind, message).into()
}
