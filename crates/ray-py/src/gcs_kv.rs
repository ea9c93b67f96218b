//! Keys and values of the control plane for processes that are not members of a cluster: a driver that
//! uploads packages before it joins, the processes that set runtime environments up, and who starts nodes.

use bytes::Bytes;
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use ray_core::error::RayResult;
use ray_core::pb::gcs::{KvGetRequest, KvPutRequest, ListNodesRequest, node_info};
use ray_gcs::client::{ClientConfig, GcsClient};
use tokio::runtime::Runtime;

use crate::core_worker::hex;
use crate::error::raise;

/// A connection to the control plane at one address.
#[pyclass(name = "GcsKv", module = "ray_rust._internal", frozen)]
pub(crate) struct PyGcsKv {
    runtime: Runtime,
    client: GcsClient,
}

#[pymethods]
impl PyGcsKv {
    /// Connects to the control plane at "host:port".
    #[new]
    fn new(py: Python<'_>, address: &str) -> PyResult<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| PyOSError::new_err(error.to_string()))?;
        let connect = GcsClient::connect(address, ClientConfig::default());
        let client = py.detach(|| runtime.block_on(connect)).map_err(|error| raise(py, error))?;
        Ok(Self { runtime, client })
    }

    /// The value of a key, or None.
    fn get<'py>(
        &self,
        py: Python<'py>,
        namespace: &[u8],
        key: &[u8],
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let request = KvGetRequest { namespace: namespace.to_vec(), keys: vec![key.to_vec()] };
        let call = async { self.client.kv_get(request).await };
        let reply = self.wait(py, call)?;
        Ok(reply.entries.first().map(|entry| PyBytes::new(py, &entry.value)))
    }

    /// The ids of the nodes that are alive, in hexadecimal.
    fn living_nodes(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let reply = self.wait(py, async { self.client.list_nodes(ListNodesRequest {}).await })?;
        let living = reply.nodes.iter().filter(|node| node.state() == node_info::State::Alive);
        Ok(living.map(|node| hex(&node.node_id)).collect())
    }

    /// Sets a value.
    fn put(&self, py: Python<'_>, namespace: &[u8], key: &[u8], value: &[u8]) -> PyResult<()> {
        let value = Bytes::copy_from_slice(value);
        let (namespace, key) = (namespace.to_vec(), key.to_vec());
        let request = KvPutRequest { namespace, key, value: value.to_vec(), overwrite: true };
        self.wait(py, async { self.client.kv_put(request).await }).map(drop)
    }
}

impl PyGcsKv {
    fn wait<T: Send>(&self, py: Python<'_>, call: impl Future<Output = RayResult<T>> + Send) -> PyResult<T> {
        py.detach(|| self.runtime.block_on(call)).map_err(|error| raise(py, error))
    }
}
