// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Base} from "./Base.sol";
import {Consent} from "../solidity/Consent.sol";
import {IConsent} from "../solidity/interfaces/IConsent.sol";
import {ISigned} from "../solidity/interfaces/ISigned.sol";
import {ISources} from "../solidity/interfaces/ISources.sol";

/// @dev A contract that owns a study and answers EIP-1271 questions in every wicked way.
contract Villain {
    enum Way {
        Agrees,
        Reverts,
        BurnsGas,
        ReturnsTooLittle,
        ReturnsNonsense,
        ReturnsMuch,
        Reenters
    }

    Way public way;
    Consent internal immutable consent;
    bytes internal call;

    constructor(Consent consent_) {
        consent = consent_;
    }

    function behave(Way way_, bytes calldata call_) external {
        (way, call) = (way_, call_);
    }

    function isValidSignature(bytes32, bytes calldata) external returns (bytes4) {
        if (way == Way.Reverts) revert();
        if (way == Way.BurnsGas) {
            while (true) {}
        }
        if (way == Way.ReturnsTooLittle) {
            assembly {
                mstore(0, shl(224, 0x1626ba7e))
                return(0, 4)
            }
        }
        if (way == Way.ReturnsNonsense) return 0xffffffff;
        if (way == Way.ReturnsMuch) {
            assembly {
                return(0, 1000000)
            }
        }
        if (way == Way.Reenters) {
            (bool done,) = address(consent).call(call);
            require(done);
        }
        return 0x1626ba7e;
    }
}

/// @dev Faults seen in published systems, each by its name, and attacks on signatures.
contract FaultsTest is Base {
    bytes32 internal constant ID = keccak256("study");

    function setUp() public override {
        super.setUp();
        _defineStudy(alice, ID);
    }

    // ---- seen in published systems ---------------------------------------------------------------------------------------

    function test_fault_anyoneMayOverwriteASource() public {
        bytes memory publicKey = _publicKey(103);
        vm.prank(mallory);
        vm.expectRevert(abi.encodeWithSelector(ISources.NotAdmitted.selector, mallory));
        sources.defineSource(publicKey, "https://evil.example");
        publicKey = _publicKey(101);
        vm.prank(alice);
        vm.expectRevert(abi.encodeWithSelector(ISources.AlreadyDefined.selector, alice));
        sources.defineSource(publicKey, "https://evil.example");
        assertEq(bytes(sources.endpointOf(alice)), "https://source.example/iti43");
    }

    function test_fault_misnamedConstructor() public {
        string[6] memory names = [
            "Registry(address)", "Consent(address)", "Studies(address)", "initialize(address)", "init(address)",
            "constructor(address)"
        ];
        for (uint256 i = 0; i < names.length; ++i) {
            bytes memory input = abi.encodeWithSelector(bytes4(keccak256(bytes(names[i]))), mallory);
            vm.prank(mallory);
            (bool registryTook,) = address(sources).call(input);
            vm.prank(mallory);
            (bool consentTook,) = address(consent).call(input);
            assertFalse(registryTook || consentTook);
        }
        assertEq(sources.admin(), admin);
        assertEq(consent.registry(), address(sources));
    }

    function test_fault_replayableApprovals() public {
        IConsent.Allowance memory a = _allowance(ID, bob, 1);
        bytes memory signature = _signAllow(OWNER_KEY, a);
        consent.allow(a, signature);
        vm.expectRevert(abi.encodeWithSelector(ISigned.SeqNotRising.selector, 1, 1));
        consent.allow(a, signature);
        _revoke(OWNER_KEY, ID, bob, 2);
        vm.expectRevert(abi.encodeWithSelector(ISigned.SeqNotRising.selector, 2, 1));
        consent.allow(a, signature);
        assertFalse(_granted(ID, bob));
    }

    function test_fault_requestKeysNotRecorded() public {
        vm.prank(bob);
        consent.request(ID, IConsent.Mode.Full, 1, 0, PGP_KEY);
        assertEq(consent.getGrant(ID, bob).requestedKey, keccak256(PGP_KEY));
        // And the owner's word names the key that it was given for.
        IConsent.Allowance memory a = _allowance(ID, bob, 1);
        bytes memory signature = _signAllow(OWNER_KEY, a);
        a.encryptionKey = keccak256("the relayer's own key");
        vm.expectRevert(abi.encodeWithSelector(ISigned.BadSignature.selector, owner));
        consent.allow(a, signature);
    }

    /// Nothing that a patient could be named with has a place: ids are words of 32 bytes, texts are commitments. The only free
    /// bytes are a source's endpoint and OpenPGP keys.
    function test_fault_patientIdsInClear() public {
        IConsent.Allowance memory a = _allowance(ID, bob, 1);
        assertEq(abi.encode(a).length, 11 * 32);
        (bool took,) =
            address(studies).call(abi.encodeWithSignature("defineStudy(string,address,bool,bytes32,uint64,bytes)"));
        assertFalse(took);
        (took,) = address(consent).call(abi.encodeWithSignature("request(bytes32,uint8,uint16,string,bytes)"));
        assertFalse(took);
    }

    function test_fault_allowAndRevokeReplayedOutOfOrder() public {
        IConsent.Allowance memory a = _allowance(ID, bob, 5);
        bytes memory allowance = _signAllow(OWNER_KEY, a);
        bytes memory revocation = _signRevoke(OWNER_KEY, ID, bob, 6, NOW);
        consent.revoke(ID, bob, 6, NOW, revocation);
        vm.expectRevert(abi.encodeWithSelector(ISigned.SeqNotRising.selector, 6, 5));
        consent.allow(a, allowance);
        assertFalse(_granted(ID, bob));
        // The other way round, an old revocation cannot undo a newer allow.
        _allow(OWNER_KEY, _allowance(ID, bob, 7));
        vm.expectRevert(abi.encodeWithSelector(ISigned.SeqNotRising.selector, 7, 6));
        consent.revoke(ID, bob, 6, NOW, revocation);
        assertTrue(_granted(ID, bob));
    }

    // ---- replays elsewhere -----------------------------------------------------------------------------------------------

    function test_RevertWhen_playedForAnotherStudyOrGrantee() public {
        _defineStudy(alice, "other");
        bytes memory signature = _signAllow(OWNER_KEY, _allowance(ID, bob, 1));
        bytes memory refusal = abi.encodeWithSelector(ISigned.BadSignature.selector, owner);
        vm.expectRevert(refusal);
        consent.allow(_allowance("other", bob, 1), signature);
        vm.expectRevert(refusal);
        consent.allow(_allowance(ID, mallory, 1), signature);
        signature = _signRevoke(OWNER_KEY, ID, bob, 1, NOW);
        vm.expectRevert(refusal);
        consent.revoke("other", bob, 1, NOW, signature);
        vm.expectRevert(refusal);
        consent.revoke(ID, mallory, 1, NOW, signature);
    }

    function test_RevertWhen_playedOnAnotherChainOrContract() public {
        IConsent.Allowance memory a = _allowance(ID, bob, 1);
        bytes memory signature = _signAllow(OWNER_KEY, a);
        bytes memory refusal = abi.encodeWithSelector(ISigned.BadSignature.selector, owner);
        vm.chainId(4242);
        vm.expectRevert(refusal);
        consent.allow(a, signature);
        vm.chainId(31337);
        Consent other = new Consent(address(sources));
        vm.expectRevert(refusal);
        other.allow(a, signature);
        consent.allow(a, signature);
    }

    /// A word for one action is none for another, not even with the same fields: the type is hashed.
    function test_RevertWhen_playedAsAnotherAction() public {
        bytes memory refusal = abi.encodeWithSelector(ISigned.BadSignature.selector, owner);
        bytes memory veto = _signVeto(OWNER_KEY, ID, 1, NOW);
        vm.expectRevert(refusal);
        studies.tombstone(ID, 1, NOW, veto);
        bytes memory recover = _signHash(OWNER_KEY, _recoverHash(ID, mallory, 1, NOW));
        vm.expectRevert(refusal);
        studies.transfer(ID, mallory, false, 1, NOW, recover);
    }

    // ---- signatures ------------------------------------------------------------------------------------------------------

    /// (r, n - s, v') verifies as well as (r, s, v). It is another signature of the same word, and the word counts once.
    function test_aMalleatedSignatureIsNoSecondWord() public {
        IConsent.Allowance memory a = _allowance(ID, bob, 1);
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(OWNER_KEY, _consentDigest(_allowHash(a)));
        consent.allow(a, abi.encodePacked(r, s, v));
        bytes memory twin = abi.encodePacked(r, bytes32(SECP256K1_ORDER - uint256(s)), v == 27 ? uint8(28) : uint8(27));
        vm.expectRevert(abi.encodeWithSelector(ISigned.SeqNotRising.selector, 1, 1));
        consent.allow(a, twin);
        bytes memory short = abi.encodePacked(r, bytes32(uint256(s) | uint256(v - 27) << 255));
        vm.expectRevert(abi.encodeWithSelector(ISigned.SeqNotRising.selector, 1, 1));
        consent.allow(a, short);
    }

    function test_shortSignaturesAreAccepted() public {
        IConsent.Allowance memory a = _allowance(ID, bob, 1);
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(OWNER_KEY, _consentDigest(_allowHash(a)));
        consent.allow(a, abi.encodePacked(r, bytes32(uint256(s) | uint256(v - 27) << 255)));
        assertTrue(_granted(ID, bob));
    }

    /// ecrecover answers zero for nonsense, and zero owns every study that does not exist.
    function test_RevertWhen_nonsenseIsSignedForNobody() public {
        IConsent.Allowance memory a = _allowance("unknown", bob, 1);
        vm.expectRevert();
        consent.allow(a, new bytes(65));
        a.studyId = ID;
        vm.expectRevert(abi.encodeWithSelector(ISigned.BadSignature.selector, owner));
        consent.allow(a, new bytes(65));
    }

    // ---- owners that are contracts ---------------------------------------------------------------------------------------

    function _villain() internal returns (Villain villain) {
        villain = new Villain(consent);
        studies.transfer(
            ID, address(villain), false, 1, NOW, _signTransfer(OWNER_KEY, ID, address(villain), 1, NOW)
        );
    }

    function test_aContractOwnerConsents() public {
        _villain();
        consent.allow(_allowance(ID, bob, 1), "anything");
        assertTrue(_granted(ID, bob));
    }

    function test_aContractOwnerThatDoesNotAgreeGrantsNothing() public {
        Villain villain = _villain();
        bytes memory refusal = abi.encodeWithSelector(ISigned.BadSignature.selector, address(villain));
        for (uint8 way = uint8(Villain.Way.Reverts); way <= uint8(Villain.Way.ReturnsMuch); ++way) {
            if (way == uint8(Villain.Way.BurnsGas)) continue;
            villain.behave(Villain.Way(way), "");
            vm.expectRevert(refusal);
            consent.allow(_allowance(ID, bob, 1), "anything");
        }
        assertFalse(_granted(ID, bob));
    }

    /// The owner can burn what the sender gives, no more, and nothing comes of it: relayers bound the gas.
    function test_aContractOwnerThatBurnsGasGrantsNothing() public {
        Villain villain = _villain();
        villain.behave(Villain.Way.BurnsGas, "");
        bytes memory input = abi.encodeCall(consent.allow, (_allowance(ID, bob, 1), "anything"));
        uint256 before = gasleft();
        (bool done,) = address(consent).call{gas: 300_000}(input);
        assertTrue(before - gasleft() < 310_000);
        assertFalse(done);
        assertFalse(_granted(ID, bob));
    }

    /// While it is asked about one word it cannot act on another: it is asked by STATICCALL.
    function test_aContractOwnerCannotReenter() public {
        Villain villain = _villain();
        bytes memory inner = abi.encodeCall(consent.allow, (_allowance(ID, mallory, 1), ""));
        villain.behave(Villain.Way.Reenters, inner);
        vm.expectRevert(abi.encodeWithSelector(ISigned.BadSignature.selector, address(villain)));
        consent.allow(_allowance(ID, bob, 1), "anything");
        assertFalse(_granted(ID, bob));
        assertFalse(_granted(ID, mallory));
    }

    // ---- code --------------------------------------------------------------------------------------------------------------

    /// The runtime code holds nothing of the deployment, so that its hash can be compared with the published one.
    function test_theCodeIsTheSameEverywhere() public {
        vm.chainId(7);
        Consent other = new Consent(mallory);
        assertEq(address(other).codehash, address(consent).codehash);
    }
}
