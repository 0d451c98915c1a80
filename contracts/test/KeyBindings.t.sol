// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Base} from "./Base.sol";
import {KeyBindings} from "../solidity/KeyBindings.sol";
import {IKeyBindings} from "../solidity/interfaces/IKeyBindings.sol";
import {ISigned} from "../solidity/interfaces/ISigned.sol";

/// @dev An account that is a contract and agrees with what one key signs.
contract Clinic {
    address private immutable _physician;

    constructor(address physician) {
        _physician = physician;
    }

    function isValidSignature(bytes32 digest, bytes calldata signature) external view returns (bytes4) {
        (bytes32 r, bytes32 s) = abi.decode(signature[:64], (bytes32, bytes32));
        bool agrees = ecrecover(digest, uint8(signature[64]), r, s) == _physician;
        return agrees ? bytes4(0x1626ba7e) : bytes4(0);
    }
}

contract KeyBindingsTest is Base {
    uint256 private constant CLINIC = 400;
    uint64 private constant END = NOW + 1000;

    KeyBindings private bindings;
    address private clinic = vm.addr(CLINIC);
    bytes private spki = new bytes(91);
    bytes private proof = new bytes(64);
    bytes32 private key;

    function setUp() public override {
        super.setUp();
        bindings = new KeyBindings(address(sources));
        for (uint256 i = 0; i < 91; ++i) spki[i] = bytes1(uint8(i + 1));
        proof[0] = 0x77;
        key = sha256(spki);
    }

    function _digestOf(bytes32 message) private view returns (bytes32) {
        bytes32 domain = _domainOf("PACS Bridge Key Bindings", address(bindings));
        return keccak256(abi.encodePacked("\x19\x01", domain, message));
    }

    function _signBind(uint256 by, address account, uint64 notAfter, uint32 seq, uint64 deadline)
        private
        view
        returns (bytes memory)
    {
        bytes32 typeHash = keccak256(
            "BindKey(address account,bytes spki,bytes proof,uint64 notAfter,uint32 seq,uint64 deadline)"
        );
        bytes32 message =
            keccak256(abi.encode(typeHash, account, keccak256(spki), keccak256(proof), notAfter, seq, deadline));
        return _sign(by, _digestOf(message));
    }

    function _signUnbind(uint256 by, address account, bytes32 key_, uint32 seq, uint64 deadline)
        private
        view
        returns (bytes memory)
    {
        bytes32 typeHash = keccak256("UnbindKey(address account,bytes32 key,uint32 seq,uint64 deadline)");
        return _sign(by, _digestOf(keccak256(abi.encode(typeHash, account, key_, seq, deadline))));
    }

    function _bind(uint32 seq) private {
        bindings.bindKey(clinic, spki, proof, END, seq, NOW, _signBind(CLINIC, clinic, END, seq, NOW));
    }

    function test_RevertWhen_thereIsNoRegistry() public {
        vm.expectRevert(IKeyBindings.ZeroAddress.selector);
        new KeyBindings(address(0));
        assertEq(bindings.registry(), address(sources));
    }

    function testFuzz_anybodySendsWhatTheAccountSigned(address sender, bytes32 seed, uint64 notAfter, uint32 seq)
        public
    {
        vm.assume(seq > 0 && seq < type(uint32).max && notAfter >= NOW);
        for (uint256 i = 0; i < 91; ++i) spki[i] = keccak256(abi.encode(seed, i))[0];
        key = sha256(spki);
        bytes memory signature = _signBind(CLINIC, clinic, notAfter, seq, NOW);
        vm.expectEmit(true, true, false, true, address(bindings));
        emit IKeyBindings.KeyBound(clinic, key, spki, proof, notAfter, seq);
        vm.prank(sender);
        bindings.bindKey(clinic, spki, proof, notAfter, seq, NOW, signature);
        assertEq(bindings.notAfterOf(clinic, key), notAfter);
        signature = _signUnbind(CLINIC, clinic, key, seq + 1, NOW);
        vm.expectEmit(true, true, false, true, address(bindings));
        emit IKeyBindings.KeyUnbound(clinic, key, seq + 1);
        vm.prank(sender);
        bindings.unbindKey(clinic, key, seq + 1, NOW, signature);
        assertEq(bindings.notAfterOf(clinic, key), 0);
        assertEq(bindings.seqOf(clinic), seq + 1);
    }

    /// Who has the key, or another account, binds and unbinds nothing of this one.
    function testFuzz_RevertWhen_anotherSigned(uint256 other) public {
        other = 1 + other % (SECP256K1_ORDER - 1);
        vm.assume(vm.addr(other) != clinic);
        bytes memory signature = _signBind(other, clinic, END, 1, NOW);
        vm.expectRevert(abi.encodeWithSelector(ISigned.BadSignature.selector, clinic));
        bindings.bindKey(clinic, spki, proof, END, 1, NOW, signature);
        _bind(1);
        signature = _signUnbind(other, clinic, key, 2, NOW);
        vm.expectRevert(abi.encodeWithSelector(ISigned.BadSignature.selector, clinic));
        bindings.unbindKey(clinic, key, 2, NOW, signature);
        vm.prank(vm.addr(other));
        vm.expectRevert(abi.encodeWithSelector(ISigned.BadSignature.selector, clinic));
        bindings.unbindKey(clinic, key, 2, NOW, "");
        assertEq(bindings.notAfterOf(clinic, key), END);
        assertEq(bindings.seqOf(clinic), 1);
    }

    /// Accounts do not share anything, even a key.
    function testFuzz_anotherAccountsWordsChangeNothingHere(uint256 other, uint32 seq, bool unbind) public {
        other = 1 + other % (SECP256K1_ORDER - 1);
        address stranger = vm.addr(other);
        vm.assume(stranger != clinic && seq > 0);
        _bind(1);
        if (unbind) {
            bindings.unbindKey(stranger, key, seq, NOW, _signUnbind(other, stranger, key, seq, NOW));
        } else {
            bindings.bindKey(stranger, spki, proof, END + 1, seq, NOW, _signBind(other, stranger, END + 1, seq, NOW));
        }
        assertEq(bindings.notAfterOf(clinic, key), END);
        assertEq(bindings.notAfterOf(stranger, key), unbind ? 0 : END + 1);
        assertEq(bindings.seqOf(clinic), 1);
        assertEq(bindings.seqOf(stranger), seq);
    }

    function test_theAccountMaySendItselfWithoutASignature() public {
        vm.prank(clinic);
        bindings.bindKey(clinic, spki, proof, END, 1, NOW, "");
        assertEq(bindings.notAfterOf(clinic, key), END);
        vm.prank(clinic);
        bindings.unbindKey(clinic, key, 2, NOW, "");
        assertEq(bindings.notAfterOf(clinic, key), 0);
    }

    function test_anAccountThatIsAContractIsAsked() public {
        address account = address(new Clinic(vm.addr(401)));
        bytes memory signature = _signBind(402, account, END, 1, NOW);
        vm.expectRevert(abi.encodeWithSelector(ISigned.BadSignature.selector, account));
        bindings.bindKey(account, spki, proof, END, 1, NOW, signature);
        bindings.bindKey(account, spki, proof, END, 1, NOW, _signBind(401, account, END, 1, NOW));
        assertEq(bindings.notAfterOf(account, key), END);
        bindings.unbindKey(account, key, 2, NOW, _signUnbind(401, account, key, 2, NOW));
        assertEq(bindings.notAfterOf(account, key), 0);
    }

    function testFuzz_RevertWhen_aFieldIsAnother(uint8 field) public {
        field = field % 6;
        bytes memory signature = _signBind(CLINIC, clinic, END, 5, NOW);
        if (field == 1) spki[40] ^= 0x01;
        if (field == 2) proof[40] ^= 0x01;
        address account = field == 0 ? alice : clinic;
        vm.expectRevert(abi.encodeWithSelector(ISigned.BadSignature.selector, account));
        bindings.bindKey(
            account, spki, proof, field == 3 ? END + 1 : END, field == 4 ? 6 : 5, field == 5 ? NOW + 1 : NOW, signature
        );
        if (field == 2 || field == 3) return;
        signature = _signUnbind(CLINIC, clinic, key, 5, NOW);
        bytes32 named = field == 1 ? sha256(spki) : key;
        vm.expectRevert(abi.encodeWithSelector(ISigned.BadSignature.selector, account));
        bindings.unbindKey(account, named, field == 4 ? 6 : 5, field == 5 ? NOW + 1 : NOW, signature);
    }

    /// What was said once, or was overtaken, is never said again, whichever of the two it was.
    function testFuzz_RevertWhen_theNumberDoesNotRise(uint32 first, uint32 second) public {
        vm.assume(first > 0 && second <= first);
        _bind(first);
        bytes memory signature = _signBind(CLINIC, clinic, END, second, NOW);
        vm.expectRevert(abi.encodeWithSelector(ISigned.SeqNotRising.selector, first, second));
        bindings.bindKey(clinic, spki, proof, END, second, NOW, signature);
        signature = _signUnbind(CLINIC, clinic, key, second, NOW);
        vm.expectRevert(abi.encodeWithSelector(ISigned.SeqNotRising.selector, first, second));
        bindings.unbindKey(clinic, key, second, NOW, signature);
    }

    function test_RevertWhen_aBindingIsPlayedAgainAfterItsEnd() public {
        bytes memory signature = _signBind(CLINIC, clinic, END, 1, END);
        bindings.bindKey(clinic, spki, proof, END, 1, END, signature);
        bindings.unbindKey(clinic, key, 2, NOW, _signUnbind(CLINIC, clinic, key, 2, NOW));
        vm.expectRevert(abi.encodeWithSelector(ISigned.SeqNotRising.selector, 2, 1));
        bindings.bindKey(clinic, spki, proof, END, 1, END, signature);
        assertEq(bindings.notAfterOf(clinic, key), 0);
    }

    /// A card that is lost before its binding was sent.
    function test_unbindingVoidsWhatWasSignedAndNotSent() public {
        bytes memory signature = _signBind(CLINIC, clinic, END, 1, END);
        bindings.unbindKey(clinic, key, 1, NOW, _signUnbind(CLINIC, clinic, key, 1, NOW));
        vm.expectRevert(abi.encodeWithSelector(ISigned.SeqNotRising.selector, 1, 1));
        bindings.bindKey(clinic, spki, proof, END, 1, END, signature);
    }

    function testFuzz_RevertWhen_theDeadlinePassed(uint32 late) public {
        vm.assume(late > 0);
        uint64 end = type(uint64).max;
        bytes memory bind = _signBind(CLINIC, clinic, end, 1, NOW);
        bytes memory unbind = _signUnbind(CLINIC, clinic, key, 1, NOW);
        vm.warp(uint256(NOW) + late);
        vm.expectRevert(abi.encodeWithSelector(ISigned.DeadlinePassed.selector, NOW));
        bindings.bindKey(clinic, spki, proof, end, 1, NOW, bind);
        vm.expectRevert(abi.encodeWithSelector(ISigned.DeadlinePassed.selector, NOW));
        bindings.unbindKey(clinic, key, 1, NOW, unbind);
    }

    function testFuzz_RevertWhen_aLengthIsWrong(uint8 length) public {
        if (length != 91) {
            vm.prank(clinic);
            vm.expectRevert(abi.encodeWithSelector(IKeyBindings.SpkiLength.selector, length));
            bindings.bindKey(clinic, new bytes(length), proof, END, 1, NOW, "");
        }
        if (length != 64) {
            vm.prank(clinic);
            vm.expectRevert(abi.encodeWithSelector(IKeyBindings.ProofLength.selector, length));
            bindings.bindKey(clinic, spki, new bytes(length), END, 1, NOW, "");
        }
    }

    function testFuzz_RevertWhen_itWouldBeOver(uint64 notAfter) public {
        notAfter = notAfter % NOW;
        vm.prank(clinic);
        vm.expectRevert(abi.encodeWithSelector(IKeyBindings.BadEnd.selector, notAfter));
        bindings.bindKey(clinic, spki, proof, notAfter, 1, NOW, "");
        vm.prank(clinic);
        bindings.bindKey(clinic, spki, proof, NOW, 1, NOW, "");
        assertEq(bindings.notAfterOf(clinic, key), NOW);
    }

    function test_RevertWhen_nobodySpeaks() public {
        vm.expectRevert(IKeyBindings.ZeroAddress.selector);
        bindings.bindKey(address(0), spki, proof, END, 1, NOW, new bytes(65));
        vm.expectRevert(IKeyBindings.ZeroAddress.selector);
        bindings.unbindKey(address(0), key, 1, NOW, new bytes(65));
    }

    function test_RevertWhen_itIsForAnotherChainOrConsortium() public {
        bytes memory signature = _signBind(CLINIC, clinic, END, 1, NOW);
        KeyBindings other = new KeyBindings(address(sources));
        vm.expectRevert(abi.encodeWithSelector(ISigned.BadSignature.selector, clinic));
        other.bindKey(clinic, spki, proof, END, 1, NOW, signature);
        vm.chainId(block.chainid + 1);
        vm.expectRevert(abi.encodeWithSelector(ISigned.BadSignature.selector, clinic));
        bindings.bindKey(clinic, spki, proof, END, 1, NOW, signature);
    }
}
