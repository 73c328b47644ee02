package store

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// FaultKind is what a Fault does to an operation.
type FaultKind uint8

// The kinds. Fail is the only one that is seen at once; Torn and Flip are what disks do silently.
const (
	Fail FaultKind = iota // nothing is transferred; Errno is returned
	Torn                  // a write stops half-way, inside a slot; Errno is returned, or success if it is 0
	Flip                  // one bit of the bytes is wrong, in what a read returns or in what a write stores; success
	Slow                  // the operation is done after Delay
)

// Op is a set of operations.
type Op uint8

// The operations that a Fault may meet.
const (
	OpRead Op = 1 << iota
	OpWrite
	OpGrow
	OpDiscard
)

// Fault says what goes wrong and when. The operations of Ops are counted, one a call: the first After pass, then each is
// hit (with probability Rate, if that is not 0) until Count have been hit, if that is not 0.
type Fault struct {
	Kind  FaultKind
	Ops   Op
	Errno unix.Errno
	Delay time.Duration
	After uint64
	Count uint64
	Rate  float64
}

// Flaky is a store that passes everything to another one and makes it fail as told.
type Flaky struct {
	under Store

	mu sync.Mutex
	// +checklocks:mu
	faults []faultState
	// +checklocks:mu
	random *rand.Rand
	// +checklocks:mu
	injected uint64
}

type faultState struct {
	Fault
	seen, hit uint64
}

// NewFlaky wraps a store. The same seed and the same sequence of operations give the same faults.
func NewFlaky(under Store, seed uint64, faults ...Fault) *Flaky {
	f := &Flaky{under: under, random: rand.New(rand.NewPCG(seed, seed))}
	f.SetFaults(faults...)
	return f
}

// SetFaults replaces all faults, with none: nothing fails any more. Their counts start afresh.
func (f *Flaky) SetFaults(faults ...Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = nil
	for _, fault := range faults {
		f.faults = append(f.faults, faultState{Fault: fault})
	}
}

// Injected is the number of faults that were hit so far.
func (f *Flaky) Injected() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.injected
}

// Name is the name of the store underneath.
func (f *Flaky) Name() string {
	if s, ok := f.under.(interface{ Name() string }); ok {
		return s.Name()
	}
	return "flaky"
}

// strike counts one operation and returns the faults that hit it, and a random number for what they need.
func (f *Flaky) strike(op Op) (hits []Fault, random uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.faults {
		s := &f.faults[i]
		if s.Ops&op == 0 {
			continue
		}
		s.seen++
		if s.seen <= s.After || s.Count > 0 && s.hit >= s.Count || s.Rate > 0 && f.random.Float64() >= s.Rate {
			continue
		}
		s.hit++
		f.injected++
		hits = append(hits, s.Fault)
	}
	if hits != nil {
		random = f.random.Uint64()
	}
	return hits, random
}

// before does what hits do before the operation: waiting, and failing it.
func (f *Flaky) before(hits []Fault, op string, slot, n uint64) error {
	for _, h := range hits {
		switch h.Kind {
		case Slow:
			time.Sleep(h.Delay)
		case Fail:
			return &Error{Path: f.Name(), Op: op, Slot: slot, Count: n, Err: h.Errno}
		}
	}
	return nil
}

// ReadSlots reads slots, or not; see Store.
func (f *Flaky) ReadSlots(slot uint64, bufs [][]byte) error {
	hits, random := f.strike(OpRead)
	if hits == nil {
		return f.under.ReadSlots(slot, bufs)
	}
	n, _ := slotsOf(bufs)
	if err := f.before(hits, "read", slot, n); err != nil {
		return err
	}
	if err := f.under.ReadSlots(slot, bufs); err != nil {
		return err
	}
	for _, h := range hits {
		if h.Kind == Flip {
			flipBit(bufs, random)
		}
	}
	return nil
}

// WriteSlots writes slots, or not, or not quite; see Store.
func (f *Flaky) WriteSlots(slot uint64, bufs [][]byte) error {
	hits, random := f.strike(OpWrite)
	if hits == nil {
		return f.under.WriteSlots(slot, bufs)
	}
	n, err := slotsOf(bufs)
	if err != nil {
		return &Error{Path: f.Name(), Op: "write", Slot: slot, Err: err}
	}
	if err := f.before(hits, "write", slot, n); err != nil {
		return err
	}
	// The caller's bytes are not ours to change, and direct I/O wants what we make of them aligned.
	bytes := alignedSlots(int(n))
	at := 0
	for _, b := range bufs {
		at += copy(bytes[at:], b)
	}
	for _, h := range hits {
		switch h.Kind {
		case Flip:
			flipBit([][]byte{bytes}, random)
		case Torn:
			if err := f.tear(slot, bytes); err != nil {
				return err
			}
			if h.Errno != 0 {
				return &Error{Path: f.Name(), Op: "write", Slot: slot, Count: n, Err: h.Errno}
			}
			return nil
		}
	}
	return f.under.WriteSlots(slot, [][]byte{bytes})
}

// tear stores a little under half of bytes, cut between two 512-byte sectors of one slot, so that this slot is part new
// and part old.
func (f *Flaky) tear(slot uint64, bytes []byte) error {
	if len(bytes) == 0 {
		return nil
	}
	cut := len(bytes)/2 - SlotSize/8
	whole := cut / SlotSize * SlotSize
	middle := alignedSlots(1)
	if err := f.under.ReadSlots(slot+uint64(whole/SlotSize), [][]byte{middle}); err != nil {
		return err
	}
	copy(middle, bytes[whole:cut])
	return f.under.WriteSlots(slot, [][]byte{bytes[:whole], middle})
}

func flipBit(bufs [][]byte, random uint64) {
	total := 0
	for _, b := range bufs {
		total += len(b)
	}
	if total == 0 {
		return
	}
	bit := random % (uint64(total) * 8)
	at := int(bit / 8)
	for _, b := range bufs {
		if at < len(b) {
			b[at] ^= 1 << (bit % 8)
			return
		}
		at -= len(b)
	}
}

// Grow grows the store underneath, or not; see Store.
func (f *Flaky) Grow(slots uint64) error {
	hits, _ := f.strike(OpGrow)
	if err := f.before(hits, "grow", 0, slots); err != nil {
		return err
	}
	return f.under.Grow(slots)
}

// Discard discards, or not; see Store.
func (f *Flaky) Discard(slot, n uint64) error {
	hits, _ := f.strike(OpDiscard)
	if err := f.before(hits, "discard", slot, n); err != nil {
		return err
	}
	return f.under.Discard(slot, n)
}

// Reserve makes room again, or not: it is a growth; see Store.
func (f *Flaky) Reserve(slot, n uint64) error {
	hits, _ := f.strike(OpGrow)
	if err := f.before(hits, "grow", slot, n); err != nil {
		return err
	}
	return f.under.Reserve(slot, n)
}

// Close closes the store underneath.
func (f *Flaky) Close() error { return f.under.Close() }

// ParseFaults reads a list of faults separated by semicolons and the seed that may be given with any of them. Each
// fault is a word and options, separated by commas:
//
//	read=EIO  write=ENOSPC  grow=ENOSPC  discard=EIO    the operation fails with that errno (EIO if none is given)
//	torn  torn=EIO                                      a write stops half-way, silently or with that errno
//	flip  flip=write                                    a bit is wrong in what is read, or in what is written
//	slow=5ms  slow=5ms,on=write                         the operation takes longer
//	after=N  count=N  rate=0.01  seed=N                 when: see Fault
//
// For example: write=EIO,after=100,count=1;flip,rate=0.001,seed=7
func ParseFaults(spec string) (seed uint64, faults []Fault, err error) {
	for part := range strings.SplitSeq(spec, ";") {
		fault := Fault{}
		for i, option := range strings.Split(part, ",") {
			key, value, _ := strings.Cut(strings.TrimSpace(option), "=")
			if i == 0 {
				err = fault.parseKind(key, value)
			} else if key == "seed" {
				seed, err = strconv.ParseUint(value, 0, 64)
			} else {
				err = fault.parseOption(key, value)
			}
			if err != nil {
				if numErr := (*strconv.NumError)(nil); errors.As(err, &numErr) {
					err = errors.New("not a number that this can be")
				}
				return 0, nil, fmt.Errorf("fault %q: %q: %w", part, option, err)
			}
		}
		faults = append(faults, fault)
	}
	return seed, faults, nil
}

var errUnknownFault = errors.New("unknown; known are read write grow discard torn flip slow, after count rate seed on")

var opWords = map[string]Op{"read": OpRead, "write": OpWrite, "grow": OpGrow, "discard": OpDiscard}

func (f *Fault) parseKind(key, value string) (err error) {
	if op, ok := opWords[key]; ok {
		f.Kind, f.Ops, f.Errno = Fail, op, unix.EIO
		if value != "" {
			f.Errno, err = parseErrno(value)
		}
		return err
	}
	switch key {
	case "torn":
		f.Kind, f.Ops = Torn, OpWrite
		if value != "" {
			f.Errno, err = parseErrno(value)
		}
	case "flip":
		f.Kind, f.Ops = Flip, OpRead
		if value != "" {
			f.Ops = opWords[value] & (OpRead | OpWrite)
			if f.Ops == 0 {
				err = errors.New("flip is of read or write")
			}
		}
	case "slow":
		f.Kind, f.Ops = Slow, OpRead|OpWrite
		if f.Delay, err = time.ParseDuration(value); err != nil {
			err = errors.New("not a time: write it as slow=5ms")
		}
	case "after", "count", "rate", "seed", "on":
		err = errors.New("stands behind a fault, as in read=EIO,rate=0.01")
	default:
		err = errUnknownFault
	}
	return err
}

func (f *Fault) parseOption(key, value string) (err error) {
	switch key {
	case "after":
		f.After, err = strconv.ParseUint(value, 0, 64)
	case "count":
		f.Count, err = strconv.ParseUint(value, 0, 64)
	case "rate":
		f.Rate, err = strconv.ParseFloat(value, 64)
		if err == nil && !(f.Rate > 0 && f.Rate <= 1) {
			err = errors.New("a rate is above 0 and at most 1")
		}
	case "on":
		op, ok := opWords[value]
		if f.Ops = op; !ok || f.Kind != Slow {
			err = errors.New("on=read, on=write, on=grow or on=discard goes with slow")
		}
	default:
		err = errUnknownFault
	}
	return err
}

// parseErrno takes a name (EIO) or a number (5).
func parseErrno(s string) (unix.Errno, error) {
	if n, err := strconv.ParseUint(s, 0, 12); err == nil && n > 0 {
		return unix.Errno(n), nil
	}
	for e := unix.Errno(1); e < 134; e++ {
		if unix.ErrnoName(e) == strings.ToUpper(s) {
			return e, nil
		}
	}
	return 0, errors.New("no such errno")
}
