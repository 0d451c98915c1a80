// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Base} from "./Base.sol";
import {ISources} from "../solidity/interfaces/ISources.sol";

contract SourcesDefineTest is Base {
    function test_RevertWhen_notAdmitted() public {
        bytes memory publicKey = _publicKey(103);
        vm.prank(mallory);
        vm.expectRevert(abi.encodeWithSelector(ISources.NotAdmitted.selector, mallory));
        sources.defineSource(publicKey, "https://m.example");
    }

    /// A fault of published systems: anyone may overwrite a source.
    function test_RevertWhen_definedTwice() public {
        bytes memory publicKey = _publicKey(101);
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(ISources.AlreadyDefined.selector, alice));
        sources.defineSource(publicKey, "https://elsewhere.example");
        assertEq(bytes(sources.endpointOf(alice)), "https://source.example/iti43");
    }

    function testFuzz_RevertWhen_publicKeyIsNotTheCallers(bytes memory publicKey) public {
        vm.prank(admin);
        sources.admit(mallory);
        vm.prank(mallory);
        vm.expectRevert(abi.encodeWithSelector(ISources.PublicKeyMismatch.selector, mallory));
        sources.defineSource(publicKey, "https://m.example");
    }

    function test_RevertWhen_publicKeyHasAPrefixOrIsAnothers() public {
        vm.prank(admin);
        sources.admit(mallory);
        bytes memory uncompressed = bytes.concat(hex"04", _publicKey(103));
        vm.prank(mallory);
        vm.expectRevert(abi.encodeWithSelector(ISources.PublicKeyMismatch.selector, mallory));
        sources.defineSource(uncompressed, "https://m.example");
        bytes memory alices = _publicKey(101);
        vm.prank(mallory);
        vm.expectRevert(abi.encodeWithSelector(ISources.PublicKeyMismatch.selector, mallory));
        sources.defineSource(alices, "https://m.example");
    }

    function test_RevertWhen_endpointIsEmptyOrTooLong() public {
        vm.prank(admin);
        sources.admit(mallory);
        bytes memory publicKey = _publicKey(103);
        vm.prank(mallory);
        vm.expectRevert(abi.encodeWithSelector(ISources.EndpointLength.selector, 0));
        sources.defineSource(publicKey, "");
        vm.prank(mallory);
        vm.expectRevert(abi.encodeWithSelector(ISources.EndpointLength.selector, 513));
        sources.defineSource(publicKey, string(new bytes(513)));
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(ISources.EndpointLength.selector, 513));
        sources.changeEndpoint(string(new bytes(513)));
    }

    function test_RevertWhen_changingTheEndpointOfNothing() public {
        vm.prank(mallory);
        vm.expectRevert(abi.encodeWithSelector(ISources.NotDefined.selector, mallory));
        sources.changeEndpoint("https://m.example");
    }

    function testFuzz_anyKeyDefinesItself(uint256 key, uint16 length) public {
        key = 1000 + key % (SECP256K1_ORDER - 1000);
        string memory endpoint = string(new bytes(1 + length % 512));
        address source = vm.addr(key);
        vm.prank(admin);
        sources.admit(source);
        assertFalse(sources.isActive(source));
        bytes memory publicKey = _publicKey(key);
        vm.prank(source);
        sources.defineSource(publicKey, endpoint);
        assertTrue(sources.isActive(source));
        assertEq(sources.publicKeyOf(source), publicKey);
        assertEq(bytes(sources.endpointOf(source)), bytes(endpoint));
        assertEq(sources.sourceOf(source), source);
    }

    function testFuzz_endpointChangesConcernTheCallerOnly(string calldata endpoint) public {
        vm.assume(bytes(endpoint).length > 0 && bytes(endpoint).length <= 512);
        bytes memory before = bytes(sources.endpointOf(bob));
        vm.prank(alice);
        sources.changeEndpoint(endpoint);
        assertEq(bytes(sources.endpointOf(alice)), bytes(endpoint));
        assertEq(bytes(sources.endpointOf(bob)), before);
    }
}
