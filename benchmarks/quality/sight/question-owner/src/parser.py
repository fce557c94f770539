# see OWNERS
