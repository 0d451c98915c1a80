package tests;

import jakarta.xml.soap.SOAPMessage;
import org.apache.cxf.binding.soap.SoapMessage;
import org.apache.cxf.binding.soap.interceptor.AbstractSoapInterceptor;
import org.apache.cxf.interceptor.Fault;
import org.apache.cxf.phase.Phase;

/** Changes a document's name after the message was signed. */
final class Spoiler extends AbstractSoapInterceptor {
    Spoiler() {
        super(Phase.POST_PROTOCOL_ENDING);
        // Endings run in the opposite order: this comes after the signature and before the message is written.
        addBefore("org.apache.cxf.binding.soap.saaj.SAAJOutInterceptor$SAAJOutEndingInterceptor");
    }

    @Override
    public void handleMessage(SoapMessage message) throws Fault {
        try {
            var body = message.getContent(SOAPMessage.class).getSOAPBody();
            var names = body.getElementsByTagNameNS("urn:ihe:iti:xds-b:2007", "DocumentUniqueId");
            names.item(0).setTextContent("ab".repeat(32));
        } catch (jakarta.xml.soap.SOAPException error) {
            throw new Fault(error);
        }
    }
}
