//! Bytes on a Modbus line, RTU and TCP. A frame that is accepted lies within what came, is of the length that was
//! asked for, and its checksum is right; and a true answer is found.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meter_gateway::protocol::{
    Found,
    modbus::{crc, refusal, rtu_fault, rtu_reply, tcp_fault, tcp_reply},
};

fuzz_target!(|data: &[u8]| {
    let Some((&[tcp, unit, function, count], received)) = data.split_first_chunk::<4>() else { return };
    let function = 3 + (function & 1);
    let _ = refusal(count);
    if tcp & 1 == 1 {
        let request = [0, tcp, 0, 0, 0, 6, unit, function, 0, 1, 0, count];
        if let Found::Frame(range) = tcp_reply(&request, received) {
            let frame = &received[range];
            assert_eq!((frame[0], frame[1], frame[6]), (0, tcp, unit));
            assert!(frame.len() == 9 + 2 * usize::from(count) || (frame.len() == 9 && frame[7] == function | 0x80));
        }
        let _ = (tcp_reply(received, data), tcp_fault(received, data), tcp_fault(&request, received));
    } else {
        let body = [unit, function, 0, 1, 0, count];
        let request = [&body[..], &crc(&body).to_le_bytes()].concat();
        if let Found::Frame(range) = rtu_reply(&request, received) {
            let frame = &received[range];
            let (body, sum) = frame.split_at(frame.len() - 2);
            assert_eq!((frame[0], frame[1] & 0x7F, sum), (unit, function, &crc(body).to_le_bytes()[..]));
        }
        // What a meter truly answers is found, alone and behind its echo.
        let words = 2 * usize::from(count.min(125));
        if count <= 125 && received.len() >= words {
            let mut answer = vec![unit, function, 2 * count];
            answer.extend_from_slice(&received[..words]);
            answer.extend_from_slice(&crc(&answer).to_le_bytes());
            let length = answer.len();
            let echoed = [&request[..], &answer].concat();
            if !request.starts_with(&answer) && !answer.starts_with(&request) {
                assert_eq!(rtu_reply(&request, &answer), Found::Frame(0..length));
                if !matches!(rtu_reply(&request, &echoed), Found::Frame(r) if r == (8..8 + length) || r.start == 0) {
                    panic!("the answer behind its echo is lost");
                }
            }
        }
        let _ = (rtu_reply(received, data), rtu_fault(received, data), rtu_fault(&request, received));
    }
});
