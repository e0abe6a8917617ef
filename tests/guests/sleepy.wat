;; A wasi:http component whose start function waits an hour: no processor time is spent, and no end comes.
(component
  (import "wasi:io/poll@0.2.0" (instance $poll
    (export "pollable" (type $p (sub resource)))
    (export "[method]pollable.block" (func (param "self" (borrow $p))))))
  (alias export $poll "pollable" (type $pollable))
  (import "wasi:clocks/monotonic-clock@0.2.0" (instance $clk
    (alias outer 1 $pollable (type $pp))
    (export "pollable" (type $q (eq $pp)))
    (export "subscribe-duration" (func (param "when" u64) (result (own $q))))))
  (import "wasi:http/types@0.2.0" (instance $t
    (export "incoming-request" (type (sub resource)))
    (export "response-outparam" (type (sub resource)))))
  (alias export $t "incoming-request" (type $req))
  (alias export $t "response-outparam" (type $out))
  (core func $block (canon lower (func $poll "[method]pollable.block")))
  (core func $sub (canon lower (func $clk "subscribe-duration")))
  (core module $m
    (import "h" "block" (func $block (param i32)))
    (import "h" "sub" (func $sub (param i64) (result i32)))
    (func $s (call $block (call $sub (i64.const 3600000000000))))
    (start $s)
    (func (export "handle") (param i32 i32)))
  (core instance $i (instantiate $m (with "h" (instance (export "block" (func $block)) (export "sub" (func $sub))))))
  (func $handle (param "request" (own $req)) (param "response-out" (own $out)) (canon lift (core func $i "handle")))
  (component $shim
    (import "request-type" (type $r (sub resource)))
    (import "out-type" (type $o (sub resource)))
    (import "h" (func $h (param "request" (own $r)) (param "response-out" (own $o))))
    (export "incoming-request" (type $r))
    (export "response-outparam" (type $o))
    (export "handle" (func $h)))
  (instance $ih (instantiate $shim (with "request-type" (type $req)) (with "out-type" (type $out)) (with "h" (func $handle))))
  (export "wasi:http/incoming-handler@0.2.0" (instance $ih))
)
