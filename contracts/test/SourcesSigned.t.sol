// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Base} from "./Base.sol";
import {ISigned} from "../solidity/interfaces/ISigned.sol";
import {ISources} from "../solidity/interfaces/ISources.sol";

/// @dev changeEndpointSigned and changeKeysSigned: the identity's word, sent by somebody else.
contract SourcesSignedTest is Base {
    uint256 private constant ALICE = 101;
    uint256 private constant BOB = 102;
    string private constant ELSEWHERE = "https://elsewhere.example";
    bytes private constant PGP = hex"99010203";

    function _endpointSignature(uint256 key, address source, string memory endpoint, uint32 seq, uint64 deadline)
        private
        view
        returns (bytes memory)
    {
        bytes32 typeHash = keccak256("ChangeEndpoint(address source,string endpoint,uint32 seq,uint64 deadline)");
        return _signHash(key, keccak256(abi.encode(typeHash, source, keccak256(bytes(endpoint)), seq, deadline)));
    }

    function _keysSignature(uint256 key, address source, bytes32 tls, bytes memory pgp, uint32 seq, uint64 deadline)
        private
        view
        returns (bytes memory)
    {
        bytes32 typeHash =
            keccak256("ChangeKeys(address source,bytes32 tlsKey,bytes encryptionKey,uint32 seq,uint64 deadline)");
        return _signHash(key, keccak256(abi.encode(typeHash, source, tls, keccak256(pgp), seq, deadline)));
    }

    function testFuzz_anybodySendsWhatTheIdentitySigned(address sender, bytes32 tls, uint16 length, uint32 seq) public {
        vm.assume(seq > 0 && seq < type(uint32).max);
        bytes memory pgp = new bytes(1 + length % 1024);
        bytes memory signature = _endpointSignature(ALICE, alice, ELSEWHERE, seq, NOW);
        vm.expectEmit(true, false, false, true, address(sources));
        emit ISources.EndpointChanged(alice, ELSEWHERE);
        vm.prank(sender);
        sources.changeEndpointSigned(alice, ELSEWHERE, seq, NOW, signature);
        assertEq(keccak256(bytes(sources.endpointOf(alice))), keccak256(bytes(ELSEWHERE)));
        signature = _keysSignature(ALICE, alice, tls, pgp, seq + 1, NOW);
        vm.expectEmit(true, false, false, true, address(sources));
        emit ISources.KeysChanged(alice, tls, pgp);
        vm.prank(sender);
        sources.changeKeysSigned(alice, tls, pgp, seq + 1, NOW, signature);
        (bytes32 tlsKey, bytes32 encryptionKey) = sources.keysOf(alice);
        assertEq(tlsKey, tls);
        assertEq(encryptionKey, keccak256(pgp));
        assertEq(sources.sourceSeqOf(alice), seq + 1);
    }

    /// Whoever steals the key that is on line gets nowhere with it, nor does another source.
    function testFuzz_RevertWhen_anotherKeySigned(uint256 key) public {
        key = 1 + key % (SECP256K1_ORDER - 1);
        vm.assume(vm.addr(key) != alice);
        bytes memory signature = _endpointSignature(key, alice, ELSEWHERE, 1, NOW);
        vm.expectRevert(abi.encodeWithSelector(ISigned.BadSignature.selector, alice));
        sources.changeEndpointSigned(alice, ELSEWHERE, 1, NOW, signature);
        signature = _keysSignature(key, alice, "tls", PGP, 1, NOW);
        vm.expectRevert(abi.encodeWithSelector(ISigned.BadSignature.selector, alice));
        sources.changeKeysSigned(alice, "tls", PGP, 1, NOW, signature);
    }

    function test_RevertWhen_anOperatorSignsOrSends() public {
        address operator = _addOperator(alice, 300);
        bytes memory signature = _keysSignature(300, alice, "tls", PGP, 1, NOW);
        vm.prank(operator);
        vm.expectRevert(abi.encodeWithSelector(ISigned.BadSignature.selector, alice));
        sources.changeKeysSigned(alice, "tls", PGP, 1, NOW, signature);
        vm.prank(operator);
        vm.expectRevert(abi.encodeWithSelector(ISigned.BadSignature.selector, alice));
        sources.changeEndpointSigned(alice, ELSEWHERE, 1, NOW, "");
        vm.prank(operator);
        vm.expectRevert(abi.encodeWithSelector(ISources.NotDefined.selector, operator));
        sources.changeEndpointSigned(operator, ELSEWHERE, 1, NOW, "");
    }

    function test_theIdentityMaySendItselfWithoutASignature() public {
        vm.prank(alice);
        sources.changeKeysSigned(alice, "tls", PGP, 1, NOW, "");
        (bytes32 tlsKey,) = sources.keysOf(alice);
        assertEq(tlsKey, "tls");
    }

    function testFuzz_RevertWhen_aFieldIsAnother(uint8 field) public {
        bytes memory signature = _endpointSignature(ALICE, alice, ELSEWHERE, 5, NOW);
        field = field % 4;
        address source = field == 0 ? bob : alice;
        vm.expectRevert(abi.encodeWithSelector(ISigned.BadSignature.selector, source));
        sources.changeEndpointSigned(
            source,
            field == 1 ? "https://redirected.example" : ELSEWHERE,
            field == 2 ? 6 : 5,
            field == 3 ? NOW + 1 : NOW,
            signature
        );
        signature = _keysSignature(ALICE, alice, "tls", PGP, 5, NOW);
        vm.expectRevert(abi.encodeWithSelector(ISigned.BadSignature.selector, source));
        sources.changeKeysSigned(
            source,
            field == 1 ? bytes32("other") : bytes32("tls"),
            field == 2 ? bytes("other") : PGP,
            5,
            field == 3 ? NOW + 1 : NOW,
            signature
        );
    }

    function testFuzz_RevertWhen_theNumberDoesNotRise(uint32 first, uint32 second) public {
        vm.assume(first > 0 && second <= first);
        bytes memory signature = _endpointSignature(ALICE, alice, ELSEWHERE, first, NOW);
        sources.changeEndpointSigned(alice, ELSEWHERE, first, NOW, signature);
        signature = _keysSignature(ALICE, alice, "tls", PGP, second, NOW);
        vm.expectRevert(abi.encodeWithSelector(ISigned.SeqNotRising.selector, first, second));
        sources.changeKeysSigned(alice, "tls", PGP, second, NOW, signature);
    }

    /// One's own later word counts, whichever way it was given.
    function test_RevertWhen_anOlderSignatureComesAfterTheIdentitySpokeItself() public {
        bytes memory endpoint = _endpointSignature(ALICE, alice, ELSEWHERE, 1, NOW);
        bytes memory keys = _keysSignature(ALICE, alice, "old", PGP, 1, NOW);
        vm.prank(alice);
        sources.changeKeys("new", PGP);
        vm.expectRevert(abi.encodeWithSelector(ISigned.SeqNotRising.selector, 1, 1));
        sources.changeEndpointSigned(alice, ELSEWHERE, 1, NOW, endpoint);
        vm.expectRevert(abi.encodeWithSelector(ISigned.SeqNotRising.selector, 1, 1));
        sources.changeKeysSigned(alice, "old", PGP, 1, NOW, keys);
        vm.prank(alice);
        sources.changeEndpoint(ELSEWHERE);
        assertEq(sources.sourceSeqOf(alice), 2);
        assertEq(sources.sourceSeqOf(bob), 0);
    }

    function testFuzz_RevertWhen_theDeadlinePassed(uint32 late) public {
        vm.assume(late > 0);
        bytes memory signature = _endpointSignature(ALICE, alice, ELSEWHERE, 1, NOW);
        vm.warp(uint256(NOW) + late);
        vm.expectRevert(abi.encodeWithSelector(ISigned.DeadlinePassed.selector, NOW));
        sources.changeEndpointSigned(alice, ELSEWHERE, 1, NOW, signature);
    }

    function test_RevertWhen_itCouldNotBeSaidDirectlyEither() public {
        bytes memory signature = _endpointSignature(ALICE, alice, "", 1, NOW);
        vm.expectRevert(abi.encodeWithSelector(ISources.EndpointLength.selector, 0));
        sources.changeEndpointSigned(alice, "", 1, NOW, signature);
        bytes memory long = new bytes(1025);
        signature = _keysSignature(ALICE, alice, "tls", long, 1, NOW);
        vm.expectRevert(abi.encodeWithSelector(ISources.EncryptionKeyLength.selector, 1025));
        sources.changeKeysSigned(alice, "tls", long, 1, NOW, signature);
        signature = _endpointSignature(200, owner, ELSEWHERE, 1, NOW);
        vm.expectRevert(abi.encodeWithSelector(ISources.NotDefined.selector, owner));
        sources.changeEndpointSigned(owner, ELSEWHERE, 1, NOW, signature);
        assertEq(sources.sourceSeqOf(alice), 0);
    }

    function test_aSourceOnAnotherChainIsNotMeant() public {
        bytes memory signature = _endpointSignature(BOB, bob, ELSEWHERE, 1, NOW);
        vm.chainId(block.chainid + 1);
        vm.expectRevert(abi.encodeWithSelector(ISigned.BadSignature.selector, bob));
        sources.changeEndpointSigned(bob, ELSEWHERE, 1, NOW, signature);
    }
}
