"""Query campaigns: many small changes around one image, as a black-box search for an adversarial example sends them.

Every worker writes fingerprints of the images that it decided on to the store of the audit trail, after the answer
(`watch`, `fingerprint`, `records`, `store`). One worker of all that share the store holds a lease and looks at them in
order: it finds near-duplicates (`index`), gathers them in groups (`groups`), and names what a group looks like
(`behaviour`, `analyst`, `case`). Nothing of that changes an answer or waits for one.
"""
