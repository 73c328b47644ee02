package ctl

import (
	"bytes"
	"compress/flate"
	"io"
	"sync"
)

// Ledger is whom the memory of long documents is charged to; *mm.System satisfies it.
type Ledger interface {
	ChargeRecord(bytes int) error
	ReleaseRecord(bytes int)
}

// Text is a rendered document as one reader sees it: fixed when it is made, readable at any offset, by several at once.
//
// The pages of a large file make tens of megabytes of text, which the budget of a small mount does not have. What is
// longer than one chunk is therefore kept deflated chunk by chunk, a tenth to a quarter of its length. What is longer
// than a few kilobytes is charged to the mount's records like everything else that it costs the host.
type Text struct {
	size   int64
	plain  []byte   // the whole document when it is at most one chunk
	chunks [][]byte // deflated; chunkBytes of the document each, the last one less
	ledger Ledger
	held   int // bytes charged

	mu    sync.Mutex
	raw   []byte // chunk number at, inflated: readers go forward in pieces smaller than a chunk
	at    int
	inflt io.ReadCloser
}

const (
	chunkBytes = 64 << 10
	freeBytes  = 4 << 10 // a document of that length is not charged
	// unpackBytes is charged once for a packed Text: the inflated chunk and the inflater's window and tables.
	unpackBytes = chunkBytes + 48<<10
)

// deflaters are lent to documents that are being packed; nil is one that was not made yet. Each takes over a megabyte, so
// there are two: further documents wait, for no more than the rendering of others.
var deflaters = func() chan *flate.Writer {
	c := make(chan *flate.Writer, 2)
	for range cap(c) {
		c <- nil
	}
	return c
}()

func newDeflater() *flate.Writer {
	w, err := flate.NewWriter(io.Discard, flate.BestSpeed)
	if err != nil { // only for a bad level
		panic(err)
	}
	return w
}

// Render renders d as text or as JSON. A document that is not short is charged to ledger, if there is one, and Render
// fails with the ledger's error when that has no room; Close gives the charge back.
func Render(d *Doc, asJSON bool, ledger Ledger) (*Text, error) {
	t := &Text{ledger: ledger, at: -1}
	b := builder{t: t}
	var err error
	if asJSON {
		err = d.WriteJSON(&b)
	} else {
		err = d.WriteText(&b)
	}
	if err == nil {
		err = b.finish()
	}
	if b.deflater != nil {
		deflaters <- b.deflater
	}
	if err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// builder packs what is written into the chunks of its Text.
type builder struct {
	t        *Text
	raw      []byte // of the chunk being filled
	packed   bytes.Buffer
	deflater *flate.Writer
}

func (b *builder) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		if len(b.raw) == chunkBytes {
			if err := b.pack(); err != nil {
				return 0, err
			}
		}
		take := min(len(p), chunkBytes-len(b.raw))
		b.raw = append(b.raw, p[:take]...)
		p = p[take:]
	}
	b.t.size += int64(n)
	return n, nil
}

func (b *builder) pack() error {
	if b.deflater == nil {
		if err := b.t.charge(unpackBytes); err != nil {
			return err
		}
		if b.deflater = <-deflaters; b.deflater == nil {
			b.deflater = newDeflater()
		}
	}
	b.packed.Reset()
	b.deflater.Reset(&b.packed)
	if _, err := b.deflater.Write(b.raw); err != nil {
		return err
	}
	if err := b.deflater.Close(); err != nil {
		return err
	}
	if err := b.t.charge(b.packed.Len()); err != nil {
		return err
	}
	b.t.chunks = append(b.t.chunks, bytes.Clone(b.packed.Bytes()))
	b.raw = b.raw[:0]
	return nil
}

func (b *builder) finish() error {
	if len(b.t.chunks) == 0 {
		if len(b.raw) > freeBytes {
			if err := b.t.charge(len(b.raw)); err != nil {
				return err
			}
		}
		b.t.plain = bytes.Clone(b.raw)
		return nil
	}
	return b.pack()
}

func (t *Text) charge(n int) error {
	if t.ledger == nil {
		return nil
	}
	if err := t.ledger.ChargeRecord(n); err != nil {
		return err
	}
	t.held += n
	return nil
}

// Size is the length of the document in bytes.
func (t *Text) Size() int64 { return t.size }

// ReadAt copies the document from off on into p, with io.EOF when it ends before p is full.
func (t *Text) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= t.size {
		return 0, io.EOF
	}
	if t.chunks == nil {
		n := copy(p, t.plain[off:])
		if n < len(p) {
			return n, io.EOF
		}
		return n, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for n < len(p) && off < t.size {
		if err := t.inflateLocked(int(off / chunkBytes)); err != nil {
			return n, err
		}
		c := copy(p[n:], t.raw[off%chunkBytes:])
		n, off = n+c, off+int64(c)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// inflateLocked makes raw the given chunk. Preconditions: t.mu is held; the chunk exists.
func (t *Text) inflateLocked(chunk int) error {
	if t.at == chunk {
		return nil
	}
	t.at = -1
	packed := bytes.NewReader(t.chunks[chunk])
	if t.inflt == nil {
		t.inflt = flate.NewReader(packed)
		t.raw = make([]byte, chunkBytes)
	} else if err := t.inflt.(flate.Resetter).Reset(packed, nil); err != nil {
		return err
	}
	length := min(int64(chunkBytes), t.size-int64(chunk)*chunkBytes)
	t.raw = t.raw[:length]
	if _, err := io.ReadFull(t.inflt, t.raw); err != nil {
		return err
	}
	t.at = chunk
	return nil
}

// Close gives back what the document was charged. It may not be read any more.
func (t *Text) Close() {
	if t.held > 0 {
		t.ledger.ReleaseRecord(t.held)
		t.held = 0
	}
	t.plain, t.chunks, t.size = nil, nil, 0
}
