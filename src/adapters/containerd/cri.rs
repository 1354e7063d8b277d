//! What only CRI knows: version, configuration, and what a container was restored from.

use std::collections::HashMap;

use k8s_cri::v1::{
    ContainerState, ContainerStatusRequest, StatusRequest, VersionRequest, image_service_client::ImageServiceClient,
    runtime_service_client::RuntimeServiceClient,
};
use tonic::{Request, transport::Channel};

use super::{Containerd, LARGEST_ANSWER, TASK_CALL, failure};
use crate::ports::PortResult;

/// Name and version as CRI tells them (`containerd`, `v2.3.4`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeVersion {
    /// `containerd` or `cri-o`.
    pub name: String,
    /// With containerd's leading `v`.
    pub version: String,
}

/// What CRI knows of a container, whatever its task does.
pub(super) struct Known {
    /// The checkpoint image that it was restored from.
    pub(super) restored_from: Option<String>,
    /// containerd sets it to exited where a start fails, also where that was only told to have failed (`internal/cri/server/container_start.go`).
    pub(super) state: ContainerState,
}

impl Containerd {
    pub(super) fn cri(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(LARGEST_ANSWER)
    }

    pub(super) fn cri_images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(LARGEST_ANSWER)
    }

    /// Name and version of the runtime.
    ///
    /// # Errors
    /// Where CRI does not answer.
    pub async fn version(&self) -> PortResult<RuntimeVersion> {
        let answer =
            self.cri().version(limited(VersionRequest::default())).await.map_err(|status| failure("tell its version", &status))?.into_inner();
        Ok(RuntimeVersion { name: answer.runtime_name, version: answer.runtime_version })
    }

    /// The CRI plugin's configuration as JSON (verbose CRI status, key `config`); none where the runtime does not tell it.
    ///
    /// # Errors
    /// Where CRI does not answer.
    pub async fn configuration(&self) -> PortResult<Option<String>> {
        let answer =
            self.cri().status(limited(StatusRequest { verbose: true })).await.map_err(|status| failure("tell its configuration", &status))?;
        Ok(answer.into_inner().info.remove("config"))
    }

    /// What a container was restored from, and its state by which the kubelet goes.
    pub(super) async fn known(&self, id: &str) -> PortResult<Known> {
        let ask = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer =
            self.cri().container_status(limited(ask)).await.map_err(|status| failure(&format!("tell the status of container {id}"), &status))?;
        let status = answer.into_inner().status.unwrap_or_default();
        Ok(Known { restored_from: checkpoint_image(&status.annotations), state: status.state() })
    }
}

pub(super) fn limited<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(TASK_CALL);
    request
}

/// containerd 2.1 to 2.3 add these annotations to the container's own (not the pod's) while they import a checkpoint, and nowhere else
/// (`internal/cri/server/container_checkpoint_linux.go`, `CRImportCheckpoint`): `checkpointImage` is the image as the pod's spec names it. An ordinary
/// create, also a later restart of the same pod, takes the kubelet's annotations, where they are missing.
fn checkpoint_image(annotations: &HashMap<String, String>) -> Option<String> {
    (annotations.get("restored").map(String::as_str) == Some("true")).then(|| annotations.get("checkpointImage").cloned()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_restored_container_has_a_checkpoint_image() {
        let annotations = |list: &[(&str, &str)]| list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<HashMap<_, _>>();
        assert_eq!(
            checkpoint_image(&annotations(&[("restored", "true"), ("checkpointImage", "127.0.0.1:5785/drover/0f:c")])).as_deref(),
            Some("127.0.0.1:5785/drover/0f:c")
        );
        assert_eq!(checkpoint_image(&annotations(&[("checkpointImage", "x")])), None);
        assert_eq!(checkpoint_image(&HashMap::new()), None);
    }
}
