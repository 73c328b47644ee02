package pfn

import "fmt"

// State is what a frame is used for at the moment. Every frame is in exactly one (Windows Internals 7 ch. 5, "Page
// frame number database").
type State uint8

// The states.
const (
	Retired         State = iota // not part of the memory, now or yet: the host has what is behind it (resize.go)
	Zeroed                       // free, filled with zeros
	Free                         // free, contents unknown
	Standby                      // holds a page that its store has too; in no working set; may be taken at any time
	Modified                     // holds a page that no store has; in no working set; waits for the page writer
	ModifiedNoWrite              // as Modified, but must not be written
	Transition                   // under I/O or pinned: in no working set and on no list
	Active                       // in a working set, or taken over by the manager's own records
	Bad                          // not to be used: its memory is broken
	numStates
)

var stateNames = [numStates]string{"Retired", "Zeroed", "Free", "Standby", "Modified", "ModifiedNoWrite", "Transition", "Active",
	"Bad"}

func (s State) String() string {
	if s < numStates {
		return stateNames[s]
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// Event is something that happens to a frame. Nothing else changes a frame's state.
type Event uint8

// The events.
const (
	Allocate      Event = iota // taken for a page, an I/O or the zero-page thread
	Steal                      // a clean Active page gives up its frame: its store has the bytes
	MakeValid                  // enters a working set
	TrimClean                  // leaves its working set, store has the bytes
	TrimDirty                  // leaves its working set, store has not
	TrimBusy                   // leaves its working set while pinned or being written; settles later
	TrimNoWrite                // leaves its working set, not to be written
	PageOut                    // the modified page writer takes it
	SettleClean                // last pin or I/O ended: store has the bytes
	SettleDirty                // last pin or I/O ended: store has not
	SettleNoWrite              // last pin or I/O ended: not to be written
	Release                    // its page is deleted
	MadeZero                   // the zero-page thread filled it
	Enlist                     // becomes part of the memory, which has grown
	Retire                     // is no longer part of the memory, which shrinks
	Condemn                    // its memory has turned out to be broken
	numEvents
)

var eventNames = [numEvents]string{"Allocate", "Steal", "MakeValid", "TrimClean", "TrimDirty", "TrimBusy", "TrimNoWrite",
	"PageOut", "SettleClean", "SettleDirty", "SettleNoWrite", "Release", "MadeZero", "Enlist", "Retire", "Condemn"}

func (e Event) String() string {
	if e < numEvents {
		return eventNames[e]
	}
	return fmt.Sprintf("Event(%d)", uint8(e))
}

// Departure is why a page lost its frame and is in its store alone.
type Departure uint8

// The departures.
const (
	Unknown    Departure = iota
	Repurposed           // its Standby frame was taken for another page
	Stolen               // its clean Active frame was: Standby had none left
	Emptied              // a command emptied its standby list
	Unplaced             // it never had one: none was left when it was stored, and it went straight to its store
	Limited              // its file had as many pages in memory as it may
	numDepartures
)

var departureNames = [numDepartures]string{"Unknown", "Repurposed", "Stolen", "Emptied", "Unplaced", "Limited"}

func (d Departure) String() string {
	if d < numDepartures {
		return departureNames[d]
	}
	return fmt.Sprintf("Departure(%d)", uint8(d))
}

// illegal marks a transition that must never happen.
const illegal = numStates

// Next is the state machine: Next(state, event) is the only way from one state to another. ok is false where the event
// cannot happen in that state.
func Next(s State, e Event) (next State, ok bool) {
	if s >= numStates || e >= numEvents {
		return s, false
	}
	next = table[s][e]
	return next, next != illegal
}

// table[state][event] is the next state.
var table = func() (t [numStates][numEvents]State) {
	for s := range t {
		for e := range t[s] {
			t[s][e] = illegal
		}
	}
	for _, r := range []struct {
		event Event
		to    State
		from  []State
	}{
		{Allocate, Transition, []State{Zeroed, Free, Standby}},
		{Steal, Transition, []State{Active}},
		{MakeValid, Active, []State{Standby, Modified, ModifiedNoWrite, Transition}},
		{TrimClean, Standby, []State{Active}},
		{TrimDirty, Modified, []State{Active}},
		{TrimBusy, Transition, []State{Active}},
		{TrimNoWrite, ModifiedNoWrite, []State{Active}},
		{PageOut, Transition, []State{Modified}},
		{SettleClean, Standby, []State{Transition}},
		{SettleDirty, Modified, []State{Transition}},
		{SettleNoWrite, ModifiedNoWrite, []State{Transition}},
		{Release, Free, []State{Active, Standby, Modified, ModifiedNoWrite, Transition}},
		{MadeZero, Zeroed, []State{Transition}},
		{Enlist, Zeroed, []State{Retired}},
		{Retire, Retired, []State{Transition, Free, Zeroed}},
		{Condemn, Bad, []State{Transition, Free, Zeroed}},
	} {
		for _, s := range r.from {
			t[s][r.event] = r.to
		}
	}
	return t
}()
