//! Keys in PEM and DER. An accepted public key is written as the one that was read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meter_gateway::identity::{PublicKey, Signer};

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        if let Ok(key) = PublicKey::from_pem(text) {
            assert_eq!(PublicKey::from_pem(&key.to_pem()), Ok(key));
            assert_eq!(PublicKey::from_base64(&key.to_base64()), Ok(key));
            assert_eq!(key.id().len(), 16);
            assert!(!key.verifies(data, text));
        }
        if let Ok(key) = PublicKey::from_base64(text) {
            assert_eq!(key.to_base64(), text);
        }
    }
    if let Ok(signer) = Signer::from_pkcs8(data) {
        let signature = signer.sign(data);
        assert!(signer.public_key().verifies(data, &signature));
        assert!(!signer.public_key().verifies(&[data, b"."].concat(), &signature));
    }
});
