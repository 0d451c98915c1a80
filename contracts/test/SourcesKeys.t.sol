// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Base} from "./Base.sol";
import {ISources} from "../solidity/interfaces/ISources.sol";

/// @dev changeKeys: how other bridges know a source, and the numbers of sources.
contract SourcesKeysTest is Base {
    function test_RevertWhen_notDefined() public {
        vm.prank(mallory);
        vm.expectRevert(abi.encodeWithSelector(ISources.NotDefined.selector, mallory));
        sources.changeKeys("tls", PGP_KEY);
    }

    /// An operator's key is on line; whoever steals it must not be able to redirect others to keys of his own.
    function test_RevertWhen_anOperatorChangesTheKeys() public {
        address operator = _addOperator(alice, 300);
        vm.prank(operator);
        vm.expectRevert(abi.encodeWithSelector(ISources.NotDefined.selector, operator));
        sources.changeKeys("tls", PGP_KEY);
    }

    function testFuzz_RevertWhen_theKeyIsTooLong(uint16 more) public {
        uint256 length = uint256(1025) + more % 5000;
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(ISources.EncryptionKeyLength.selector, length));
        sources.changeKeys("tls", new bytes(length));
    }

    function testFuzz_theNewestKeysCount(bytes32 tls, uint16 length) public {
        bytes memory key = new bytes(1 + length % 1024);
        vm.prank(alice);
        sources.changeKeys("old", PGP_KEY);
        vm.expectEmit(true, false, false, true, address(sources));
        emit ISources.KeysChanged(alice, tls, key);
        vm.prank(alice);
        sources.changeKeys(tls, key);
        (bytes32 tlsKey, bytes32 encryptionKey) = sources.keysOf(alice);
        assertEq(tlsKey, tls);
        assertEq(encryptionKey, keccak256(key));
        (tlsKey, encryptionKey) = sources.keysOf(bob);
        assertEq(tlsKey, 0);
        assertEq(encryptionKey, 0);
    }

    function test_anEmptyKeyIsNone() public {
        vm.prank(alice);
        sources.changeKeys("tls", PGP_KEY);
        vm.prank(alice);
        sources.changeKeys(0, "");
        (bytes32 tlsKey, bytes32 encryptionKey) = sources.keysOf(alice);
        assertEq(tlsKey, 0);
        assertEq(encryptionKey, 0);
    }

    function test_sourcesAreNumberedInOrderOfAdmission() public view {
        assertEq(sources.sourceCount(), 2);
        assertEq(sources.sourceAt(0), address(0));
        assertEq(sources.sourceAt(1), alice);
        assertEq(sources.sourceAt(2), bob);
        assertEq(sources.sourceAt(3), address(0));
    }
}
